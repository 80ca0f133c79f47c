/** The questions of this browser session, one asked at a time. */
import type { IApi } from '../api/client';
import { ApiProblem } from '../api/problem';
import type { IExchange, IQuestion } from './exchange';
import { advance, begin, isRunning } from './exchange';
import { Store } from './store';

export class AskSession {
  /** Questions and answers, oldest first. */
  readonly exchanges = new Store<readonly IExchange[]>([]);

  constructor(private readonly _api: Pick<IApi, 'ask'>) {}

  /** Whether an answer is still coming. */
  get busy(): boolean {
    return this._abort !== null;
  }

  /** Ask and follow the answer to its end; a question asked while another runs is ignored. */
  async ask(asked: IQuestion, maxTokens: number): Promise<void> {
    if (this._abort) {
      return;
    }
    const abort = (this._abort = new AbortController());
    const exchange = begin(this._nextId++, asked);
    this.exchanges.set([...this.exchanges.get(), exchange]);
    let end: Partial<IExchange>;
    try {
      end = await this._follow(exchange.id, asked, maxTokens, abort.signal);
    } finally {
      this._abort = null;
    }
    this._replace(exchange.id, now => ({ ...now, ...end }));
  }

  /** Stop the running answer; what has come stays. */
  stop(): void {
    this._abort?.abort();
  }

  /** Forget all questions but the running one. */
  clear(): void {
    this.exchanges.set(this.exchanges.get().filter(isRunning));
  }

  private async _follow(
    id: number,
    asked: IQuestion,
    maxTokens: number,
    signal: AbortSignal
  ): Promise<Partial<IExchange>> {
    const { collection, question, model } = asked;
    const request = { question, model, max_tokens: maxTokens };
    try {
      for await (const event of this._api.ask(collection, request, signal)) {
        if (signal.aborted) {
          break;
        }
        this._replace(id, now => advance(now, event));
      }
    } catch (reason) {
      if (!signal.aborted) {
        const problem =
          reason instanceof ApiProblem ? reason : new ApiProblem('network');
        return { phase: 'failed', problem };
      }
    }
    return signal.aborted ? { phase: 'stopped' } : {};
  }

  private _replace(id: number, change: (now: IExchange) => IExchange): void {
    this.exchanges.set(
      this.exchanges
        .get()
        .map(exchange => (exchange.id === id ? change(exchange) : exchange))
    );
  }

  private _abort: AbortController | null = null;
  private _nextId = 1;
}
