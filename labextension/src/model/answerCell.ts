/** An answer as text that leaves the panel: a Markdown cell, or plain text for the clipboard. */
import type { PartialJSONObject } from '@lumino/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { IExchange } from './exchange';
import { answeringModel, extractCitation } from './exchange';

export interface IAnswerCell {
  readonly source: string;
  readonly metadata: PartialJSONObject;
}

/** Build the Markdown cell of an answer; its metadata says that a model wrote it. */
export function answerCell(exchange: IExchange, trans: TranslationBundle): IAnswerCell {
  const lines = answerLines(exchange, trans, {
    text: escapeMarkdown,
    heading: line => `**${line}**`,
    quote: line => `> ${line}`,
    remark: line => `*${line}*`
  });
  return {
    source: lines.join('\n'),
    metadata: {
      uait: {
        generated: true,
        model: exchange.answer?.model ?? null,
        collection: exchange.collection,
        question: exchange.question,
        complete: exchange.phase === 'done',
        citations: exchange.citations.map(({ number, path, title, place }) => ({
          number,
          path,
          title,
          place: { ...place }
        }))
      }
    }
  };
}

/** Write an answer as plain text. */
export function answerText(exchange: IExchange, trans: TranslationBundle): string {
  const plain = (line: string) => line;
  const format = { text: plain, heading: plain, quote: plain, remark: plain };
  return answerLines(exchange, trans, format).join('\n');
}

interface IFormat {
  readonly text: (text: string) => string;
  readonly heading: (line: string) => string;
  readonly quote: (line: string) => string;
  readonly remark: (line: string) => string;
}

function answerLines(
  exchange: IExchange,
  trans: TranslationBundle,
  format: IFormat
): string[] {
  const lines = [format.heading(format.text(oneLine(exchange.question))), ''];
  if (exchange.extract) {
    const number = extractCitation(exchange);
    const marker = number === null ? '' : ` ${format.text(`[${number}]`)}`;
    lines.push(
      ...(format.text(exchange.extract.trim()) + marker).split('\n').map(format.quote),
      ''
    );
  }
  if (exchange.phrasing.trim()) {
    const model = format.text(answeringModel(exchange));
    const remark =
      exchange.phase === 'done'
        ? trans.__('Phrased by %1, not checked.', model)
        : trans.__('Phrased by %1, stopped before its end, not checked.', model);
    lines.push(format.text(exchange.phrasing.trim()), '', format.remark(remark), '');
  }
  if (exchange.citations.length) {
    lines.push(format.heading(trans.__('Sources')), '');
    for (const { number, path, place } of exchange.citations) {
      lines.push(`${number}. ${format.text(oneLine(`${path}, ${place.label}`))}`);
    }
  }
  while (lines[lines.length - 1] === '') {
    lines.pop();
  }
  return lines.map(line => line.replace(CONTROL, ''));
}

// All but line feed and tab: pasted into a terminal they are commands to it.
const CONTROL = /[^\P{Cc}\n\t]/gu;

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '@': '&#64;',
  '`': '&#96;'
};

/**
 * Escape text so that Markdown shows it as written, but for the white space of its lines.
 *
 * No tag, link, image, formula or structure can come from it: a cell of one's own notebook is
 * trusted, so the text of a model or a document must hold nothing that acts.
 */
export function escapeMarkdown(text: string): string {
  return text
    .replace(/\r\n?/g, '\n')
    .split('\n')
    .map(line =>
      line
        .trim()
        .replace(/[&<>@`]/g, character => ENTITIES[character] ?? character)
        // MathJax reads formulas from the finished page, but not from code
        .replace(/[$\\]+|[*_[\]{}~|]/g, found =>
          /[$\\]/.test(found) ? `\`${found}\`` : `\\${found}`
        )
        // bare addresses would become links
        .replace(/(https?|ftp):\/\//gi, '$1&#58;//')
        .replace(/www\./gi, found => `${found.slice(0, 3)}&#46;`)
        // a line may open a heading, a list, a rule or the underline of a heading
        .replace(/^([#+=:-])/, '\\$1')
        .replace(/^(\d{1,9})([.)])/, '$1\\$2')
    )
    .join('\n');
}
