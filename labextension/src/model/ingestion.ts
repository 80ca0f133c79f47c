/** Adding documents to a collection, file by file. */
import type { IApi } from '../api/client';
import { ApiProblem } from '../api/problem';
import type { FileReport, IngestDone, IngestEvent } from '../api/types';
import { Store } from './store';

export interface IIngestion {
  readonly phase: 'idle' | 'running' | 'done' | 'stopped' | 'failed';
  readonly collection: string;
  /** Files to do; null until the server has counted them. */
  readonly files: number | null;
  readonly handled: number;
  readonly current: string;
  readonly failed: readonly FileReport[];
  readonly summary: IngestDone | null;
  readonly problem: ApiProblem | null;
}

const IDLE: IIngestion = {
  phase: 'idle',
  collection: '',
  files: null,
  handled: 0,
  current: '',
  failed: [],
  summary: null,
  problem: null
};

export class Ingestion {
  readonly state = new Store<IIngestion>(IDLE);

  /** @param _onEnd - called with the collection when an ingest has ended, however it ended. */
  constructor(
    private readonly _api: Pick<IApi, 'ingest'>,
    private readonly _onEnd: (collection: string) => void
  ) {}

  /**
   * Add a file or folder, or with `path` null go on with what an interrupted ingest left.
   *
   * Returns when the stream has ended, however it ended.
   */
  async add(collection: string, path: string | null): Promise<void> {
    if (this._abort) {
      return;
    }
    const { signal } = (this._abort = new AbortController());
    this.state.set({ ...IDLE, phase: 'running', collection });
    try {
      for await (const event of this._api.ingest(collection, { path }, signal)) {
        this.state.set(advance(this.state.get(), event));
      }
    } catch (reason) {
      if (!signal.aborted) {
        const problem =
          reason instanceof ApiProblem ? reason : new ApiProblem('network');
        this.state.patch({ phase: 'failed', problem });
      }
    } finally {
      this._abort = null;
    }
    if (signal.aborted && this.state.get().phase === 'running') {
      this.state.patch({ phase: 'stopped' });
    }
    this._onEnd(collection);
  }

  /** Stop after the file that is being read; the rest stays pending. */
  stop(): void {
    this._abort?.abort();
  }

  private _abort: AbortController | null = null;
}

function advance(now: IIngestion, event: IngestEvent): IIngestion {
  switch (event.type) {
    case 'started':
      return { ...now, files: event.files };
    case 'file':
      return {
        ...now,
        handled: now.handled + 1,
        current: event.path,
        failed: event.state === 'failed' ? [...now.failed, event] : now.failed
      };
    case 'done':
      return { ...now, phase: 'done', summary: event };
    default:
      return now;
  }
}
