/** Samples of the API's shapes, and an API whose streams a test feeds by hand. */
import type { IApi } from '../../api/client';
import type {
  Answer,
  AskEvent,
  AskRequest,
  Citation,
  CollectionStatus,
  IngestEvent,
  IngestRequest,
  ModelInfo
} from '../../api/types';

/** A stream that a test pushes into; it ends by itself when its signal aborts. */
export class Feed<T> implements AsyncIterable<T> {
  constructor(readonly signal: AbortSignal) {
    signal.addEventListener('abort', () => this.fail(new Error('aborted')));
  }

  push(...values: T[]): void {
    this._steps.push(...values.map(value => ({ value })));
    this._wake();
  }

  fail(reason: Error): void {
    this._steps.push({ reason });
    this._wake();
  }

  end(): void {
    this._steps.push({});
    this._wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for (;;) {
      const step = this._steps.shift();
      if (!step) {
        await new Promise<void>(resolve => (this._wake = resolve));
      } else if (step.reason) {
        throw step.reason;
      } else if (step.value === undefined) {
        return;
      } else {
        yield step.value;
      }
    }
  }

  private readonly _steps: { value?: T; reason?: Error }[] = [];
  private _wake: () => void = () => undefined;
}

export interface ICall<Request, Event> {
  readonly collection: string;
  readonly request: Request;
  readonly feed: Feed<Event>;
}

export class FakeApi implements IApi {
  collectionList: CollectionStatus[] = [collection('docs')];
  modelList: ModelInfo[] = [model('tiny', { default: true })];
  failure: Error | null = null;
  readonly asked: ICall<AskRequest, AskEvent>[] = [];
  readonly ingested: ICall<IngestRequest, IngestEvent>[] = [];

  models(): Promise<ModelInfo[]> {
    return this.failure
      ? Promise.reject(this.failure)
      : Promise.resolve(this.modelList);
  }

  collections(): Promise<CollectionStatus[]> {
    return this.failure
      ? Promise.reject(this.failure)
      : Promise.resolve(this.collectionList);
  }

  ask(name: string, request: AskRequest, signal: AbortSignal): AsyncIterable<AskEvent> {
    const feed = new Feed<AskEvent>(signal);
    this.asked.push({ collection: name, request, feed });
    return feed;
  }

  ingest(
    name: string,
    request: IngestRequest,
    signal: AbortSignal
  ): AsyncIterable<IngestEvent> {
    const feed = new Feed<IngestEvent>(signal);
    this.ingested.push({ collection: name, request, feed });
    return feed;
  }
}

export function collection(
  name: string,
  part: Partial<CollectionStatus> = {}
): CollectionStatus {
  return {
    name,
    documents: 2,
    chunks: 9,
    embedding_model: 'minilm',
    sources: ['docs'],
    pending: [],
    failed: [],
    ingesting: false,
    generation: 2,
    disk_bytes: 1,
    ...part
  };
}

export function model(id: string, part: Partial<ModelInfo> = {}): ModelInfo {
  return {
    id,
    kind: 'chat',
    description: id,
    source: 'package:x==1',
    licence: 'Apache-2.0',
    size_bytes: 1,
    memory_bytes: 1,
    context_tokens: 2048,
    state: 'loaded',
    backend: 'echo',
    ...part
  };
}

export function citation(number: number, part: Partial<Citation> = {}): Citation {
  return {
    number,
    path: `docs/${number}.md`,
    title: `Page ${number}`,
    place: { start: 0, end: 9, label: 'lines 1-2' },
    quote: `Passage ${number}.`,
    ...part
  };
}

export function answer(part: Partial<Answer> = {}): Answer {
  return {
    question: 'Why?',
    collection: 'docs',
    declined: false,
    text: 'Passage 2. Because.',
    extract: 'Passage 2.',
    phrasing: 'Because.',
    citations: [citation(1), citation(2)],
    model: 'tiny',
    backend: 'echo',
    usage: { prompt_tokens: 40, completion_tokens: 2 },
    seconds: 1.25,
    first_token_seconds: 0.5,
    ...part
  };
}

export function evidence(part: { declined?: boolean } = {}): AskEvent {
  return {
    type: 'evidence',
    declined: false,
    extract: 'Passage 2.',
    citations: [citation(1), citation(2)],
    ...part
  };
}
