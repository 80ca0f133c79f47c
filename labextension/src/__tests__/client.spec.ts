import { ServerConnection } from '@jupyterlab/services';
import { nullTranslator } from '@jupyterlab/translation';
import { ApiClient } from '../api/client';
import { ApiProblem, describeProblem } from '../api/problem';
import type { AskEvent } from '../api/types';
import { answer } from './support/fakes';

const trans = nullTranslator.load('uait');

/** A client whose server answers as told; the requests it gets are kept. */
function clientOf(respond: (request: Request) => Response | Promise<Response>): {
  client: ApiClient;
  requests: Request[];
} {
  const requests: Request[] = [];
  const settings = ServerConnection.makeSettings({
    baseUrl: 'http://localhost/a%40b/',
    token: '',
    fetch: async (input: RequestInfo | URL) => {
      const request = input as Request;
      requests.push(request);
      return respond(request);
    }
  });
  return { client: new ApiClient(settings), requests };
}

function problem(status: number, code: string, detail: string): string {
  return JSON.stringify({
    type: `urn:uait:problem:${code}`,
    title: '',
    status,
    code,
    detail
  });
}

function events(...lines: string[]): Response {
  return new Response(lines.join(''), {
    headers: { 'Content-Type': 'text/event-stream' }
  });
}

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const value of stream) {
    all.push(value);
  }
  return all;
}

const never = () => new AbortController().signal;

async function failure(promise: Promise<unknown>): Promise<ApiProblem> {
  const reason: unknown = await promise.then(
    () => null,
    (error: unknown) => error
  );
  expect(reason).toBeInstanceOf(ApiProblem);
  return reason as ApiProblem;
}

describe('ApiClient', () => {
  it('lists collections under the base url', async () => {
    const { client, requests } = clientOf(() => Response.json({ collections: [] }));
    expect(await client.collections()).toEqual([]);
    // Jupyter puts a time stamp behind it, against caches.
    const url = requests[0]?.url.replace(/\?\d+$/, '');
    expect(url).toBe('http://localhost/a%40b/uait/v1/collections');
  });

  it('streams an answer and sends the question as JSON', async () => {
    const done = { type: 'done', answer: answer() };
    const { client, requests } = clientOf(() =>
      events(
        ': keep-alive\n\n',
        'event: delta\ndata: {"type":"delta","text":"Be"}\n\n',
        `event: done\ndata: ${JSON.stringify(done)}\n\n`
      )
    );
    const got = await collect<AskEvent>(
      client.ask('a b', { question: 'Why?' }, never())
    );
    expect(got).toEqual([{ type: 'delta', text: 'Be' }, done]);
    expect(requests[0]?.method).toBe('POST');
    expect(requests[0]?.url).toContain('/uait/v1/collections/a%20b/ask');
    expect(await requests[0]?.json()).toEqual({ question: 'Why?' });
  });

  it('passes on the problem document of a refused request', async () => {
    const { client } = clientOf(
      () =>
        new Response(
          problem(404, 'collection-not-found', 'No collection "x". Add it.'),
          {
            status: 404
          }
        )
    );
    const reason = await failure(collect(client.ask('x', { question: 'q' }, never())));
    expect([reason.code, reason.status]).toEqual(['collection-not-found', 404]);
    expect(describeProblem(reason, trans)).toBe('No collection "x". Add it.');
  });

  it('passes on an error event that comes in the middle of the stream', async () => {
    const text = problem(503, 'worker-died', 'The model worker ended. Ask again.');
    const { client } = clientOf(() =>
      events(
        'data: {"type":"delta","text":"Be"}\n\n',
        `event: error\ndata: ${text}\n\n`
      )
    );
    const got: AskEvent[] = [];
    const reason = await failure(
      (async () => {
        for await (const event of client.ask('docs', { question: 'q' }, never())) {
          got.push(event);
        }
      })()
    );
    expect(got).toHaveLength(1);
    expect([reason.code, reason.status]).toEqual(['worker-died', 503]);
  });

  it.each([
    ['the stream ends early', () => events('data: {"type":"delta","text":"B"}\n\n')],
    ['an event is not JSON', () => events('data: {oops\n\n')],
    ['there is no body', () => new Response(null)]
  ])('says that the answer was cut off when %s', async (_, respond) => {
    const { client } = clientOf(respond);
    const reason = await failure(
      collect(client.ask('docs', { question: 'q' }, never()))
    );
    expect(reason.code).toBe('interrupted');
    expect(describeProblem(reason, trans)).toMatch(/before it was complete/);
  });

  it.each([
    [401, '', /logged out/],
    [403, '{"message": "Forbidden"}', /does not allow/],
    [404, '<html>Not Found</html>', /without UAIT/],
    [500, 'null', /status 500/],
    [502, '{"detail": 3}', /status 502/]
  ])('explains status %i with body %j', async (status, body, expected) => {
    const { client } = clientOf(() => new Response(body, { status }));
    const reason = await failure(client.models());
    expect(describeProblem(reason, trans)).toMatch(expected);
    expect(reason.isPermission).toBe(status === 401 || status === 403);
  });

  it('explains a server that does not answer', async () => {
    const { client } = clientOf(() => Promise.reject(new TypeError('Failed to fetch')));
    const reason = await failure(client.collections());
    expect(describeProblem(reason, trans)).toMatch(/does not answer/);
  });

  it('explains an answer that is not JSON', async () => {
    const { client } = clientOf(() => new Response('<html>', { status: 200 }));
    expect((await failure(client.collections())).code).toBe('unreadable');
  });

  it('aborts the request when the signal aborts', async () => {
    const abort = new AbortController();
    const { client, requests } = clientOf(
      request =>
        new Promise((_, reject) =>
          request.signal.addEventListener('abort', () => reject(new Error('aborted')))
        )
    );
    const pending = failure(
      collect(client.ingest('docs', { path: 'x' }, abort.signal))
    );
    await Promise.resolve();
    abort.abort();
    await pending;
    expect(requests[0]?.signal.aborted).toBe(true);
  });
});
