import { renderMarkdown } from '@jupyterlab/rendermime/lib/renderers';
import { nullTranslator } from '@jupyterlab/translation';
import { marked } from 'marked';
import type { Answer } from '../api/types';
import { answerCell, answerText, escapeMarkdown } from '../model/answerCell';
import type { IExchange } from '../model/exchange';
import { advance, begin } from '../model/exchange';
import { answer, citation } from './support/fakes';

const trans = nullTranslator.load('uait');

/** Render as JupyterLab renders a trusted cell: nothing is sanitised. */
async function render(source: string): Promise<HTMLElement> {
  const host = document.createElement('div');
  await renderMarkdown({
    host,
    source,
    trusted: true,
    sanitizer: { sanitize: dirty => dirty },
    resolver: null,
    linkHandler: null,
    shouldTypeset: false,
    latexTypesetter: null,
    markdownParser: {
      render: text => Promise.resolve(marked.parse(text, { gfm: true, async: false }))
    }
  });
  return host;
}

const squeeze = (text: string | null) => (text ?? '').replace(/\s+/g, ' ').trim();
const tagsIn = (host: HTMLElement) =>
  new Set(Array.from(host.querySelectorAll('*'), node => node.tagName.toLowerCase()));

/** Text of the rendered cell in which MathJax would look for formulas. */
function outsideCode(host: HTMLElement): string {
  const copy = host.cloneNode(true) as HTMLElement;
  copy.querySelectorAll('code').forEach(node => node.remove());
  return copy.textContent ?? '';
}

async function expectInert(text: string): Promise<void> {
  const host = await render(escapeMarkdown(text));
  expect(squeeze(host.textContent)).toBe(squeeze(text));
  expect(outsideCode(host)).not.toMatch(/[$\\]/);
  for (const tag of tagsIn(host)) {
    expect(['p', 'code']).toContain(tag);
  }
}

function finished(part: Partial<Answer> = {}): IExchange {
  const whole = answer(part);
  const { question, collection } = whole;
  return advance(begin(1, { question, collection, model: 'auto' }), {
    type: 'done',
    answer: whole
  });
}

describe('escapeMarkdown', () => {
  it.each([
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '&lt;b&gt; &amp; &#60;script&#62;',
    '[click](javascript:alert(1)) ![x](http://a.b/c.png) [ref]: http://a.b',
    '<https://example.org> https://example.org www.example.org a.b@example.org',
    '# heading\n## another\nSetext\n===\nSetext\n---',
    '- one\n+ two\n* three\n1. four\n2) five\n- [ ] task',
    '> quoted\n\n    indented code\n\n```js\nfenced\n```\n~~~\nfenced\n~~~',
    '*em* **strong** _em_ __strong__ ~~gone~~ `code` ``co`de``',
    'a | b\n--- | ---\n1 | 2',
    'head\n:-:\ncell',
    'costs $5 or $6, $$x^2$$, \\(y\\), \\[z\\], \\begin{align}q\\end{align}',
    'back\\slash \\* \\\\ C:\\Users\\me `\\` \\`',
    'line  \nbreak\\\nnext\r\nlast\rend',
    '***\n---\n___',
    '@@0@@ and @@1@@ $a$'
  ])('shows %j as written, and nothing of it acts', expectInert);

  it('shows any mixture of special pieces as written', async () => {
    const pieces = [
      ...'`*_[]{}()#+-.!|<>~$&:\\"\'=@/ \n0a',
      '](',
      'http://a.b ',
      'www.a.b ',
      '&lt;',
      '<b>',
      '</b>',
      '```',
      '$$',
      '\\(',
      '1. ',
      '\n\n'
    ];
    // A fixed sequence (linear congruential), so that a failure can be seen again.
    let state = 20261123;
    const next = (limit: number) => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return Math.floor((state / 2147483648) * limit);
    };
    for (let round = 0; round < 1000; round++) {
      const text = Array.from(
        { length: 1 + next(14) },
        () => pieces[next(pieces.length)]
      );
      await expectInert(text.join(''));
    }
  });
});

describe('answerCell', () => {
  it('puts the evidence first, then the phrasing, then numbered sources', async () => {
    const { source } = answerCell(finished(), trans);
    const host = await render(source);
    expect(host.querySelector('blockquote')?.textContent?.trim()).toBe(
      'Passage 2. [2]'
    );
    expect(squeeze(host.textContent)).toBe(
      'Why? Passage 2. [2] Because. Phrased by tiny, not checked. Sources ' +
        'docs/1.md, lines 1-2 docs/2.md, lines 1-2'
    );
    expect(host.querySelectorAll('ol > li')).toHaveLength(2);
  });

  it('lets nothing of question, documents or model become markup', async () => {
    const evil =
      '</p><script>alert(1)</script> <img src=x onerror=alert(1)> [a](b) $x$';
    const host = await render(
      answerCell(
        finished({
          question: evil,
          extract: evil,
          phrasing: evil,
          model: evil,
          citations: [citation(1, { path: `${evil}\n# x`, quote: evil })]
        }),
        trans
      ).source
    );
    expect([...tagsIn(host)].sort()).toEqual(
      ['blockquote', 'code', 'em', 'li', 'ol', 'p', 'strong'].sort()
    );
    expect(host.textContent).toContain('<script>alert(1)</script>');
  });

  it('says in the metadata that a model wrote it, and from what', () => {
    const { metadata } = answerCell(finished(), trans);
    expect(metadata).toEqual({
      uait: {
        generated: true,
        model: 'tiny',
        collection: 'docs',
        question: 'Why?',
        complete: true,
        citations: [1, 2].map(number => ({
          number,
          path: `docs/${number}.md`,
          title: `Page ${number}`,
          place: { start: 0, end: 9, label: 'lines 1-2' }
        }))
      }
    });
  });

  it('says that a stopped answer is not complete', () => {
    const stopped: IExchange = {
      ...advance(begin(1, { question: 'Why?', collection: 'docs', model: 'tiny' }), {
        type: 'delta',
        text: 'Beca'
      }),
      phase: 'stopped'
    };
    const { source, metadata } = answerCell(stopped, trans);
    expect(source).toContain('stopped before its end');
    expect(metadata).toMatchObject({ uait: { complete: false, model: null } });
  });
});

describe('answerText', () => {
  it('is plain text without escapes', () => {
    const text = answerText(finished({ phrasing: 'a < b & *c*' }), trans);
    expect(text).toContain('Passage 2. [2]\n\na < b & *c*\n');
    expect(text).toContain('1. docs/1.md, lines 1-2\n2. docs/2.md, lines 1-2');
  });

  it('holds nothing that a terminal would take for a command', () => {
    const evil = 'a\u001b[201~\u001b]0;title\u0007\u009b2J\u0000\tb\nc';
    const text = answerText(finished({ extract: evil, phrasing: evil }), trans);
    expect(text).toContain('a[201~]0;title2J\tb\nc');
    expect(text).not.toMatch(/[^\P{Cc}\n\t]/u);
  });
});
