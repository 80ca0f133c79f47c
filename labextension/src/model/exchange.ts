/** One question and its answer, as it grows event by event. */
import type { ApiProblem } from '../api/problem';
import type { Answer, AskEvent, Citation } from '../api/types';

/** `searching` until the evidence is in, `phrasing` until the last event. */
export type Phase = 'searching' | 'phrasing' | 'done' | 'stopped' | 'failed';

export interface IExchange {
  readonly id: number;
  readonly question: string;
  readonly collection: string;
  readonly model: string;
  readonly phase: Phase;
  readonly declined: boolean;
  readonly extract: string | null;
  readonly phrasing: string;
  readonly citations: readonly Citation[];
  /** The whole answer with its figures; null until the last event. */
  readonly answer: Answer | null;
  readonly problem: ApiProblem | null;
}

/** What a person chose to ask. */
export interface IQuestion {
  readonly question: string;
  readonly collection: string;
  readonly model: string;
}

/** Return a question that waits for its evidence. */
export function begin(id: number, asked: IQuestion): IExchange {
  return {
    id,
    question: asked.question,
    collection: asked.collection,
    model: asked.model,
    phase: 'searching',
    declined: false,
    extract: null,
    phrasing: '',
    citations: [],
    answer: null,
    problem: null
  };
}

/** Return the exchange after one more event. */
export function advance(exchange: IExchange, event: AskEvent): IExchange {
  switch (event.type) {
    case 'evidence':
      return {
        ...exchange,
        phase: 'phrasing',
        declined: event.declined,
        extract: event.extract,
        citations: event.citations
      };
    case 'delta':
      return { ...exchange, phrasing: exchange.phrasing + event.text };
    case 'done':
      return {
        ...exchange,
        phase: 'done',
        declined: event.answer.declined,
        extract: event.answer.extract ?? null,
        phrasing: event.answer.phrasing ?? '',
        citations: event.answer.citations,
        answer: event.answer
      };
    default:
      // A later server may send events that this panel does not know yet.
      return exchange;
  }
}

/** Whether events may still come. */
export function isRunning(exchange: IExchange): boolean {
  return exchange.phase === 'searching' || exchange.phase === 'phrasing';
}

/** Whether there is text worth keeping. */
export function hasText(exchange: IExchange): boolean {
  return !exchange.declined && Boolean(exchange.extract || exchange.phrasing.trim());
}

/** Why the answer has no words of a model; empty where it has, or the server does not say. */
export function missingPhrasingNote(answer: Answer): string {
  const [, ...rest] = answer.text.split('\n\n');
  const last = rest.pop() ?? '';
  return !answer.phrasing && !answer.declined && /^\(.*\)$/s.test(last)
    ? last.slice(1, -1)
    : '';
}

/** The number of the citation whose passage holds the extract; the first where none does. */
export function extractCitation(exchange: IExchange): number | null {
  const { extract, citations } = exchange;
  if (!extract) {
    return null;
  }
  const holder = citations.find(citation => citation.quote.includes(extract));
  return (holder ?? citations[0])?.number ?? null;
}

/** The model that answered; the requested one until the answer is complete. */
export function answeringModel(exchange: IExchange): string {
  return exchange.answer?.model ?? exchange.model;
}
