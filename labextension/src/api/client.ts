/** The one client of the HTTP API: typed paths and shapes, Jupyter's own login and XSRF handling. */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import { ApiProblem, parseProblem } from './problem';
import { readEvents } from './sse';
import type {
  ApiPath,
  AskEvent,
  AskRequest,
  CollectionList,
  CollectionStatus,
  IngestEvent,
  IngestRequest,
  ModelInfo,
  ModelList
} from './types';

/** What the panel needs from the server. Every method throws `ApiProblem`. */
export interface IApi {
  /** List the models of the catalogue. */
  models(): Promise<ModelInfo[]>;

  /** List all collections. */
  collections(): Promise<CollectionStatus[]>;

  /** Stream an answer; aborting the signal cancels it on the server. */
  ask(
    collection: string,
    request: AskRequest,
    signal: AbortSignal
  ): AsyncIterable<AskEvent>;

  /** Stream the reports of an ingest; aborting the signal stops it after the current file. */
  ingest(
    collection: string,
    request: IngestRequest,
    signal: AbortSignal
  ): AsyncIterable<IngestEvent>;
}

/** Calls the server that served this page. */
export class ApiClient implements IApi {
  constructor(
    private readonly _settings: ServerConnection.ISettings = ServerConnection.makeSettings()
  ) {}

  async models(): Promise<ModelInfo[]> {
    return (await this._get<ModelList>('/uait/v1/models')).models;
  }

  async collections(): Promise<CollectionStatus[]> {
    return (await this._get<CollectionList>('/uait/v1/collections')).collections;
  }

  ask(
    collection: string,
    request: AskRequest,
    signal: AbortSignal
  ): AsyncIterable<AskEvent> {
    return this._stream(
      '/uait/v1/collections/{collection}/ask',
      collection,
      request,
      signal
    );
  }

  ingest(
    collection: string,
    request: IngestRequest,
    signal: AbortSignal
  ): AsyncIterable<IngestEvent> {
    return this._stream(
      '/uait/v1/collections/{collection}/ingest',
      collection,
      request,
      signal
    );
  }

  private async _get<T>(path: ApiPath): Promise<T> {
    const response = await this._request(path, {
      headers: { Accept: 'application/json' }
    });
    try {
      return (await response.json()) as T;
    } catch {
      throw new ApiProblem('unreadable', '', response.status);
    }
  }

  private async *_stream<T extends { type: string }>(
    template: ApiPath,
    collection: string,
    body: AskRequest | IngestRequest,
    signal: AbortSignal
  ): AsyncGenerator<T, void, undefined> {
    const path = template.replace('{collection}', encodeURIComponent(collection));
    const response = await this._request(path, {
      method: 'POST',
      headers: { Accept: 'text/event-stream', 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
      signal
    });
    if (!response.body) {
      throw new ApiProblem('interrupted');
    }
    try {
      for await (const { event, data } of readEvents(response.body)) {
        if (event === 'error') {
          throw toApiProblem(data, response.status);
        }
        const value = JSON.parse(data) as T;
        yield value;
        if (value.type === 'done') {
          return;
        }
      }
    } catch (reason) {
      throw reason instanceof ApiProblem ? reason : new ApiProblem('interrupted');
    }
    throw new ApiProblem('interrupted');
  }

  /** Send a request; only a good answer comes back. */
  private async _request(path: string, init: RequestInit): Promise<Response> {
    const url = URLExt.join(this._settings.baseUrl, path);
    let response: Response;
    try {
      response = await ServerConnection.makeRequest(url, init, this._settings);
    } catch {
      throw new ApiProblem('network');
    }
    if (!response.ok) {
      throw toApiProblem(await response.text().catch(() => ''), response.status);
    }
    return response;
  }
}

function toApiProblem(text: string, status: number): ApiProblem {
  const problem = parseProblem(text);
  if (problem) {
    return new ApiProblem(problem.code, problem.detail, problem.status);
  }
  return new ApiProblem(status === 404 ? 'not-installed' : 'unreadable', '', status);
}
