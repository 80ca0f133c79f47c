import {
  act,
  cleanup,
  fireEvent,
  render,
  screen,
  within
} from '@testing-library/react';
import { nullTranslator } from '@jupyterlab/translation';
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import React from 'react';
import { ApiProblem } from '../api/problem';
import { AskSession } from '../model/askSession';
import type { IAnswerCell } from '../model/answerCell';
import { Catalogue } from '../model/catalogue';
import { Ingestion } from '../model/ingestion';
import { Store } from '../model/store';
import { AskPanel, AskView } from '../panels/AskPanel';
import { PanelContext } from '../panels/context';
import { answer, collection, evidence, FakeApi, model } from './support/fakes';

const trans = nullTranslator.load('uait');
const settle = () => act(() => new Promise(resolve => setTimeout(resolve)));

/** Show the panel over a fake API, as it is after its lists were read. */
async function show(prepare: (api: FakeApi) => void = () => undefined) {
  const api = new FakeApi();
  prepare(api);
  const catalogue = new Catalogue(api);
  const ingestion = new Ingestion(api, () => void catalogue.refresh());
  const context = {
    trans,
    canInsert: new Store(true),
    insert: jest.fn<void, [IAnswerCell]>(),
    copy: jest.fn<void, [string]>(),
    open: jest.fn(() => Promise.resolve(false))
  };
  render(
    <PanelContext.Provider value={context}>
      <AskView
        catalogue={catalogue}
        session={new AskSession(api)}
        ingestion={ingestion}
        maxTokens={() => 50}
        inputRef={React.createRef<HTMLTextAreaElement>()}
      />
    </PanelContext.Provider>
  );
  await act(() => catalogue.refresh());
  return { api, context };
}

const box = () => screen.getByRole('textbox', { name: 'Question' });
const button = (name: string) => screen.getByRole('button', { name });
const log = () => screen.getByRole('log');

async function ask(question: string): Promise<void> {
  fireEvent.change(box(), { target: { value: question } });
  fireEvent.keyDown(box(), { key: 'Enter' });
  await settle();
}

afterEach(cleanup);

describe('asking', () => {
  it('streams the answer into a live region, evidence first', async () => {
    const { api } = await show();
    await ask('Why?');
    expect(box()).toHaveProperty('value', '');
    expect(log().getAttribute('aria-live')).toBe('polite');
    expect(log().textContent).toContain('Searching "docs"…');
    const feed = api.asked[0]?.feed;
    feed?.push(evidence());
    await settle();
    expect(log().textContent).toContain('Passage 2. [2]');
    expect(log().textContent).toContain('Waiting for the model…');
    feed?.push({ type: 'delta', text: 'Be' }, { type: 'delta', text: 'cau' });
    await settle();
    expect(screen.getByText('Becau')).toBeTruthy();
    feed?.push({ type: 'done', answer: answer() });
    feed?.end();
    await settle();
    expect(screen.getByText('Because.')).toBeTruthy();
    expect(log().textContent).toContain('phrased by tiny, not checked');
    expect(log().textContent).toContain(
      'tiny (echo) · 40 + 2 tokens · first after 0.5 s · 1.3 s in all'
    );
  });

  it('shows model and document text as text', async () => {
    const { api } = await show();
    await ask('<b>Why?</b>');
    api.asked[0]?.feed.push(evidence(), { type: 'delta', text: '<img src=x>**a**' });
    await settle();
    expect(screen.getByText('<img src=x>**a**')).toBeTruthy();
    expect(log().querySelector('img, b')).toBeNull();
  });

  it('starts a new line with Shift+Enter and waits for an input method', async () => {
    const { api } = await show();
    fireEvent.change(box(), { target: { value: 'Why?' } });
    fireEvent.keyDown(box(), { key: 'Enter', shiftKey: true });
    fireEvent.keyDown(box(), { key: 'Enter', isComposing: true });
    expect(api.asked).toHaveLength(0);
    fireEvent.click(button('Ask'));
    expect(api.asked).toHaveLength(1);
  });

  it('asks nothing when nothing is written', async () => {
    const { api } = await show();
    await ask('   ');
    expect(api.asked).toHaveLength(0);
  });

  it('asks the chosen collection and model', async () => {
    const { api } = await show(fake => {
      fake.collectionList = [collection('docs'), collection('papers')];
      fake.modelList = [model('tiny'), model('other')];
    });
    const choose = (label: string, value: string) =>
      fireEvent.change(screen.getByLabelText(label), { target: { value } });
    choose('Collection', 'papers');
    choose('Model', 'other');
    await ask('Why?');
    expect(api.asked[0]).toMatchObject({
      collection: 'papers',
      request: { model: 'other', max_tokens: 50 }
    });
  });

  it.each([
    ['the Stop button', () => fireEvent.click(button('Stop'))],
    ['Escape', () => fireEvent.keyDown(box(), { key: 'Escape' })]
  ])('stops with %s and keeps the text', async (_, stop) => {
    const { api } = await show();
    await ask('Why?');
    api.asked[0]?.feed.push(evidence(), { type: 'delta', text: 'Beca' });
    await settle();
    stop();
    await settle();
    expect(api.asked[0]?.feed.signal.aborted).toBe(true);
    expect(log().textContent).toContain('Stopped. The answer is not complete.');
    expect(screen.getByText('Beca')).toBeTruthy();
    expect(button('Ask')).toBeTruthy();
  });

  it('says that the documents do not answer instead of inventing', async () => {
    const { api, context } = await show();
    await ask('Why?');
    const none = { declined: true, extract: null, phrasing: null, model: null };
    api.asked[0]?.feed.push(evidence({ declined: true }), {
      type: 'done',
      answer: answer(none)
    });
    api.asked[0]?.feed.end();
    await settle();
    expect(log().textContent).toContain('The documents in "docs" do not answer this');
    expect(log().textContent).toContain('Closest passages:');
    expect(screen.queryByRole('button', { name: 'Insert as cell' })).toBeNull();
    expect(context.insert).not.toHaveBeenCalled();
  });

  it('shows what failed and asks again', async () => {
    const { api } = await show();
    await ask('Why?');
    api.asked[0]?.feed.fail(
      new ApiProblem('worker-died', 'The model worker ended. Ask again.', 503)
    );
    await settle();
    expect(screen.getByRole('alert').textContent).toContain('The model worker ended.');
    fireEvent.click(button('Ask again'));
    expect(api.asked[1]?.request.question).toBe('Why?');
  });

  it('offers no second try where a permission is missing', async () => {
    const { api } = await show();
    await ask('Why?');
    api.asked[0]?.feed.fail(new ApiProblem('unauthenticated', '', 401));
    await settle();
    expect(screen.getByRole('alert').textContent).toContain('log in');
    expect(screen.queryByRole('button', { name: 'Ask again' })).toBeNull();
  });
});

describe('keeping an answer', () => {
  async function answered() {
    const shown = await show();
    await ask('Why?');
    shown.api.asked[0]?.feed.push(evidence(), { type: 'done', answer: answer() });
    shown.api.asked[0]?.feed.end();
    await settle();
    return shown;
  }

  it('inserts it as a cell with its provenance', async () => {
    const { context } = await answered();
    fireEvent.click(button('Insert as cell'));
    const cell = context.insert.mock.calls[0]?.[0];
    expect(cell?.source).toContain('> Passage 2. \\[2\\]');
    expect(cell?.metadata).toMatchObject({ uait: { generated: true, model: 'tiny' } });
    expect(log().textContent).toContain('Inserted');
  });

  it('cannot insert without a notebook, and says why', async () => {
    const { context } = await answered();
    act(() => context.canInsert.set(false));
    const insert = button('Insert as cell (open a notebook first)');
    expect(insert).toHaveProperty('disabled', true);
  });

  it('copies it as plain text', async () => {
    const { context } = await answered();
    fireEvent.click(button('Copy'));
    expect(context.copy.mock.calls[0]?.[0]).toContain('Passage 2. [2]');
  });

  it('clears the answers', async () => {
    await answered();
    fireEvent.click(button('Clear the answers'));
    expect(screen.queryByRole('article')).toBeNull();
  });

  it('shows a source on demand and says when it cannot be opened', async () => {
    const { context } = await answered();
    const sources = screen.getByRole('list', { name: 'Sources' });
    const quote = within(sources).getByText('Passage 1.');
    expect(quote).toHaveProperty('hidden', true);
    fireEvent.click(button('Passage of source 1'));
    expect(quote).toHaveProperty('hidden', false);
    fireEvent.click(within(sources).getByText('docs/1.md'));
    await settle();
    expect(context.open).toHaveBeenCalledWith('docs', 'docs/1.md');
    expect(sources.textContent).toContain('outside of its folder');
  });
});

describe('the catalogue', () => {
  it('explains how to begin where there is no collection', async () => {
    const { api } = await show(fake => (fake.collectionList = []));
    expect(screen.getByText(/no collection yet/)).toBeTruthy();
    expect(screen.getByText('%kb add PATH')).toBeTruthy();
    await ask('Why?');
    expect(api.asked).toHaveLength(0);
  });

  it('says why a model cannot be chosen', async () => {
    await show(fake => {
      fake.modelList = [
        model('tiny', { default: true, note: 'Slow without Metal.' }),
        model('big', { backend: null, note: 'Needs Metal.' }),
        model('far', { state: 'not-pulled' })
      ];
    });
    const big = screen.getByRole('option', { name: 'big (cannot run here)' });
    expect(big).toHaveProperty('disabled', true);
    expect(big.getAttribute('title')).toBe('Needs Metal.');
    expect(
      screen.getByRole('option', { name: 'far (not downloaded yet)' })
    ).toHaveProperty('disabled', false);
    expect(screen.getByRole('option', { name: 'Automatic (tiny)' })).toBeTruthy();
    expect(screen.queryByText('Slow without Metal.')).toBeNull();
    fireEvent.change(screen.getByLabelText('Model'), { target: { value: 'tiny' } });
    expect(screen.getByText('Slow without Metal.')).toBeTruthy();
  });

  it('shows why the lists could not be read and tries again', async () => {
    const { api } = await show(fake => (fake.failure = new ApiProblem('network')));
    expect(screen.getByRole('alert').textContent).toContain('does not answer');
    api.failure = null;
    fireEvent.click(button('Try again'));
    await settle();
    expect(screen.queryByRole('alert')).toBeNull();
    expect(screen.getByText('2 documents · 9 passages')).toBeTruthy();
  });
});

describe('adding documents', () => {
  it('shows progress and what failed, file by file', async () => {
    const { api } = await show(fake => (fake.collectionList = []));
    const write = (label: string, value: string) =>
      fireEvent.change(screen.getByLabelText(label), { target: { value } });
    write('File or folder', ' my docs ');
    write('Into collection', 'mine');
    fireEvent.click(button('Add'));
    expect(screen.getByText('Looking for documents…')).toBeTruthy();
    expect(api.ingested[0]).toMatchObject({
      collection: 'mine',
      request: { path: 'my docs' }
    });
    const feed = api.ingested[0]?.feed;
    const file = { type: 'file', chunks: 1, seconds: 0.1 } as const;
    feed?.push(
      { type: 'started', collection: 'mine', files: 3 },
      { ...file, path: 'a.md', state: 'added' },
      { ...file, path: 'b.pdf', state: 'failed', error: 'It is encrypted.' }
    );
    await settle();
    expect(screen.getByText('2 of 3 files in "mine". b.pdf')).toBeTruthy();
    expect(screen.getByText(/It is encrypted/)).toBeTruthy();
    expect(screen.getByRole('progressbar')).toHaveProperty('value', 2);
    api.collectionList = [collection('mine')];
    feed?.push({ type: 'done', collection: 'mine', added: 2, failed: 1 });
    feed?.end();
    await settle();
    expect(screen.getByText('Collection "mine": 2 added, 1 failed.')).toBeTruthy();
    expect(screen.queryByText(/no collection yet/)).toBeNull();
    expect(screen.getByLabelText('Collection')).toHaveProperty('value', 'mine');
  });

  it('stops, and resumes what is left', async () => {
    const pending = [{ path: 'c.md' }];
    const { api } = await show(
      fake => (fake.collectionList = [collection('docs', { pending })])
    );
    fireEvent.click(button('Resume'));
    expect(api.ingested[0]?.request).toEqual({ path: null });
    fireEvent.click(within(screen.getByRole('form')).getByText('Stop'));
    await settle();
    expect(api.ingested[0]?.feed.signal.aborted).toBe(true);
    expect(screen.getByText(/^Stopped after 0/)).toBeTruthy();
  });

  it('shows what is wrong with the path', async () => {
    const { api } = await show();
    fireEvent.click(button('Add documents'));
    const path = screen.getByLabelText('File or folder');
    expect(document.activeElement).toBe(path);
    fireEvent.change(path, { target: { value: 'nope' } });
    fireEvent.click(button('Add'));
    api.ingested[0]?.feed.fail(new ApiProblem('not-found', 'There is no "nope".', 404));
    await settle();
    expect(screen.getByRole('alert').textContent).toBe('There is no "nope".');
  });
});

describe('the widget', () => {
  it('asks the server when it is first seen, and takes the focus when activated', async () => {
    const api = new FakeApi();
    const collections = jest.spyOn(api, 'collections');
    const catalogue = new Catalogue(api);
    const panel = new AskPanel(
      {
        catalogue,
        session: new AskSession(api),
        ingestion: new Ingestion(api, () => undefined),
        maxTokens: () => 50
      },
      {
        trans,
        canInsert: new Store(false),
        insert: () => undefined,
        copy: () => undefined,
        open: () => Promise.resolve(false)
      }
    );
    panel.hide();
    await act(() => Promise.resolve(Widget.attach(panel, document.body)));
    expect(collections).not.toHaveBeenCalled();
    await act(() => Promise.resolve(panel.show()));
    expect(collections).toHaveBeenCalledTimes(1);
    MessageLoop.sendMessage(panel, Widget.Msg.ActivateRequest);
    expect(document.activeElement).toBe(box());
    act(() => panel.dispose());
  });
});
