/** What can go wrong with a request, and the one line that says so to a person. */
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Problem } from './types';

/** A request that failed: the server's problem document, or what the browser saw instead. */
export class ApiProblem extends Error {
  /**
   * @param code - the server's stable name for the error, or one of ours: `network` (no answer),
   * `interrupted` (the stream ended early), `not-installed` (no such route), `unreadable`.
   * @param detail - the server's sentence for people; empty where it sent none.
   * @param status - HTTP status; 0 where there was none.
   */
  constructor(
    readonly code: string,
    readonly detail = '',
    readonly status = 0
  ) {
    super(detail || code);
    this.name = 'ApiProblem';
  }

  /** Whether logging in, or asking for a permission, is what helps. */
  get isPermission(): boolean {
    return this.status === 401 || this.status === 403;
  }
}

/** Read `text` as a problem document; null where it is something else. */
export function parseProblem(text: string): Problem | null {
  try {
    const value: unknown = JSON.parse(text);
    return isProblem(value) ? value : null;
  } catch {
    return null;
  }
}

function isProblem(value: unknown): value is Problem {
  if (typeof value !== 'object' || value === null) {
    return false;
  }
  const { code, detail, status } = value as Partial<Problem>;
  return (
    typeof code === 'string' && typeof detail === 'string' && typeof status === 'number'
  );
}

/** Say in one line what happened and what to do. */
export function describeProblem(problem: ApiProblem, trans: TranslationBundle): string {
  if (problem.status === 401) {
    return trans.__('You are logged out. Reload the page, log in and ask again.');
  }
  if (problem.detail) {
    return problem.detail;
  }
  switch (problem.code) {
    case 'network':
      return trans.__(
        'The Jupyter server does not answer. Check that it still runs, then try again.'
      );
    case 'interrupted':
      return trans.__('The server ended the answer before it was complete. Try again.');
    case 'not-installed':
      return trans.__(
        'This Jupyter server runs without UAIT. Enable its server extension "uait_server_ext" and restart the server.'
      );
  }
  if (problem.status === 403) {
    return trans.__(
      'Your login does not allow this. Reload the page to log in again, or ask who runs this server.'
    );
  }
  return trans.__(
    'The server answered with status %1 and no explanation. Its log says more.',
    problem.status
  );
}
