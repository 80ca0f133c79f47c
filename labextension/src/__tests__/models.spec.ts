import { ApiProblem } from '../api/problem';
import { AskSession } from '../model/askSession';
import { Catalogue } from '../model/catalogue';
import { extractCitation, missingPhrasingNote } from '../model/exchange';
import { Ingestion } from '../model/ingestion';
import { answer, collection, evidence, FakeApi, model } from './support/fakes';

const question = { question: 'Why?', collection: 'docs', model: 'auto' };
const settle = () => new Promise(resolve => setTimeout(resolve));

describe('AskSession', () => {
  it('grows the answer event by event', async () => {
    const api = new FakeApi();
    const session = new AskSession(api);
    const running = session.ask(question, 77);
    const now = () => session.exchanges.get()[0];
    expect(api.asked[0]?.request).toEqual({
      question: 'Why?',
      model: 'auto',
      max_tokens: 77
    });
    expect(now()?.phase).toBe('searching');
    api.asked[0]?.feed.push(evidence(), { type: 'delta', text: 'Be' });
    await settle();
    expect(now()).toMatchObject({ phase: 'phrasing', phrasing: 'Be' });
    api.asked[0]?.feed.push({ type: 'done', answer: answer() });
    api.asked[0]?.feed.end();
    await running;
    expect(now()).toMatchObject({ phase: 'done', phrasing: 'Because.' });
    expect(session.busy).toBe(false);
  });

  it('asks one question at a time', async () => {
    const api = new FakeApi();
    const session = new AskSession(api);
    void session.ask(question, 9);
    await session.ask(question, 9);
    expect(api.asked).toHaveLength(1);
    expect(session.exchanges.get()).toHaveLength(1);
  });

  it('keeps what has come when it is stopped', async () => {
    const api = new FakeApi();
    const session = new AskSession(api);
    const running = session.ask(question, 9);
    api.asked[0]?.feed.push(evidence(), { type: 'delta', text: 'Be' });
    await settle();
    session.stop();
    await running;
    expect(api.asked[0]?.feed.signal.aborted).toBe(true);
    expect(session.exchanges.get()[0]).toMatchObject({
      phase: 'stopped',
      phrasing: 'Be',
      problem: null
    });
  });

  it('keeps the problem of a failed answer, and the next question works', async () => {
    const api = new FakeApi();
    const session = new AskSession(api);
    const running = session.ask(question, 9);
    api.asked[0]?.feed.fail(new ApiProblem('worker-died', 'It ended.', 503));
    await running;
    expect(session.exchanges.get()[0]).toMatchObject({
      phase: 'failed',
      problem: { code: 'worker-died' }
    });
    void session.ask(question, 9);
    expect(session.exchanges.get()[1]?.phase).toBe('searching');
    session.clear();
    expect(session.exchanges.get().map(({ id }) => id)).toEqual([2]);
  });
});

describe('extractCitation', () => {
  it('is the passage that holds the extract, else the first', () => {
    const { citations } = answer();
    const exchange = { extract: 'Passage 2.', citations } as never;
    expect(extractCitation(exchange)).toBe(2);
    expect(extractCitation({ extract: 'elsewhere', citations } as never)).toBe(1);
    expect(extractCitation({ extract: null, citations } as never)).toBeNull();
    expect(extractCitation({ extract: 'x', citations: [] } as never)).toBeNull();
  });
});

describe('missingPhrasingNote', () => {
  it('is what the server says where the model said nothing', () => {
    const text = 'Passage 2. [1]\n\n(No model phrased this: it is not there.)';
    expect(missingPhrasingNote(answer({ phrasing: null, text }))).toBe(
      'No model phrased this: it is not there.'
    );
    expect(missingPhrasingNote(answer({ phrasing: 'So (so)', text }))).toBe('');
    expect(missingPhrasingNote(answer({ phrasing: null, text: '(Aside.) [1]' }))).toBe(
      ''
    );
    expect(missingPhrasingNote(answer({ phrasing: null, declined: true, text }))).toBe(
      ''
    );
  });
});

describe('Catalogue', () => {
  it('chooses the first collection with documents and offers chat models only', async () => {
    const api = new FakeApi();
    api.collectionList = [collection('empty', { documents: 0 }), collection('full')];
    api.modelList = [model('tiny'), model('minilm', { kind: 'embedding' })];
    const catalogue = new Catalogue(api);
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({
      phase: 'ready',
      collection: 'full',
      model: 'auto'
    });
    expect(catalogue.state.get().models.map(({ id }) => id)).toEqual(['tiny']);
  });

  it('keeps a choice that is still there and replaces one that is gone', async () => {
    const api = new FakeApi();
    api.collectionList = [collection('a'), collection('b')];
    const catalogue = new Catalogue(api);
    await catalogue.refresh();
    catalogue.chooseCollection('b');
    catalogue.chooseModel('tiny');
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({ collection: 'b', model: 'tiny' });
    api.collectionList = [collection('a')];
    api.modelList = [];
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({ collection: 'a', model: 'auto' });
  });

  it('follows the settings, before and after the lists are read', async () => {
    const api = new FakeApi();
    api.collectionList = [collection('a'), collection('b')];
    const catalogue = new Catalogue(api);
    catalogue.prefer('b', 'tiny');
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({ collection: 'b', model: 'tiny' });
    catalogue.prefer('a', 'unknown');
    expect(catalogue.state.get()).toMatchObject({ collection: 'a', model: 'tiny' });
    catalogue.prefer('gone', 'auto');
    expect(catalogue.state.get()).toMatchObject({ collection: 'a', model: 'auto' });
  });

  it('keeps its lists when the server fails', async () => {
    const api = new FakeApi();
    const catalogue = new Catalogue(api);
    await catalogue.refresh();
    api.failure = new ApiProblem('network');
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({
      phase: 'failed',
      collection: 'docs'
    });
    api.failure = null;
    await catalogue.refresh();
    expect(catalogue.state.get()).toMatchObject({ phase: 'ready', problem: null });
  });
});

describe('Ingestion', () => {
  it('says when it has ended, also when it failed', async () => {
    const api = new FakeApi();
    const ended: string[] = [];
    const ingestion = new Ingestion(api, name => ended.push(name));
    const running = ingestion.add('docs', null);
    expect(api.ingested[0]?.request).toEqual({ path: null });
    api.ingested[0]?.feed.fail(new Error('odd'));
    await running;
    expect(ingestion.state.get()).toMatchObject({
      phase: 'failed',
      problem: { code: 'network' }
    });
    expect(ended).toEqual(['docs']);
  });
});
