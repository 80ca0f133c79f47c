/** A form that adds a file or folder to a collection, and how far it has come. */
import type { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useId, useRef, useState } from 'react';
import { describeProblem } from '../api/problem';
import type { IngestDone } from '../api/types';
import type { IIngestion, Ingestion } from '../model/ingestion';
import { useStore } from '../model/store';
import { usePanel } from '../panels/context';
import { Notice } from './Notice';

const COLLECTION_PATTERN = '[a-z0-9][a-z0-9._\\-]{0,62}';

export interface IAddDocumentsProps {
  readonly ingestion: Ingestion;
  /** Proposed name of the collection. */
  readonly collection: string;
  /** Whether the form takes the focus when it appears. */
  readonly autoFocus: boolean;
}

export function AddDocuments(props: IAddDocumentsProps): React.JSX.Element {
  const { trans } = usePanel();
  const { ingestion } = props;
  const state = useStore(ingestion.state);
  const [path, setPath] = useState('');
  const [collection, setCollection] = useState(props.collection);
  const pathInput = useRef<HTMLInputElement>(null);
  const pathId = useId();
  const collectionId = useId();
  const hintId = useId();
  const running = state.phase === 'running';

  useEffect(() => setCollection(props.collection), [props.collection]);
  const focusAtFirst = useRef(props.autoFocus);
  useEffect(() => {
    if (focusAtFirst.current) {
      pathInput.current?.focus();
    }
  }, []);

  const submit = (event: React.FormEvent) => {
    event.preventDefault();
    if (running) {
      ingestion.stop();
    } else {
      void ingestion.add(collection, path.trim());
    }
  };
  return (
    <form
      className="jp-uait-AddDocuments"
      aria-label={trans.__('Add documents')}
      onSubmit={submit}
    >
      <label htmlFor={pathId}>{trans.__('File or folder')}</label>
      <input
        id={pathId}
        ref={pathInput}
        className="jp-mod-styled"
        value={path}
        required={!running}
        spellCheck={false}
        placeholder={trans.__('for example: docs')}
        aria-describedby={hintId}
        onChange={event => setPath(event.target.value)}
      />
      <label htmlFor={collectionId}>{trans.__('Into collection')}</label>
      <input
        id={collectionId}
        className="jp-mod-styled"
        value={collection}
        required
        spellCheck={false}
        pattern={COLLECTION_PATTERN}
        title={trans.__(
          'Lower-case letters, digits, ".", "_" and "-"; starts with a letter or digit'
        )}
        onChange={event => setCollection(event.target.value)}
      />
      <p id={hintId} className="jp-uait-hint">
        {trans.__(
          'A path on the server; a relative one starts at the folder that JupyterLab shows.'
        )}
      </p>
      <button type="submit" className="jp-uait-Button jp-uait-mod-primary">
        {running ? trans.__('Stop') : trans.__('Add')}
      </button>
      <Progress state={state} />
    </form>
  );
}

function Progress({ state }: { readonly state: IIngestion }): React.JSX.Element | null {
  const { trans } = usePanel();
  if (state.phase === 'idle') {
    return null;
  }
  return (
    <div className="jp-uait-Progress">
      {state.phase === 'running' && (
        <progress
          aria-label={trans.__('Adding documents')}
          max={state.files ?? undefined}
          value={state.files === null ? undefined : state.handled}
        />
      )}
      <p className="jp-uait-hint" role="status">
        {progressLine(state, trans)}
      </p>
      {state.problem && (
        <Notice kind="error">{describeProblem(state.problem, trans)}</Notice>
      )}
      {state.failed.length > 0 && (
        <ul className="jp-uait-Failures" aria-label={trans.__('Files that failed')}>
          {state.failed.map(report => (
            <li key={report.path}>
              <span className="jp-uait-path">{report.path}</span> {report.error}
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

function progressLine(state: IIngestion, trans: TranslationBundle): string {
  const { phase, files, handled, current, collection, summary } = state;
  if (phase === 'done' && summary) {
    return summaryLine(summary, trans);
  }
  if (phase === 'running') {
    return files === null
      ? trans.__('Looking for documents…')
      : trans.__('%1 of %2 files in "%3". %4', handled, files, collection, current);
  }
  return phase === 'stopped'
    ? trans.__('Stopped after %1 of %2 files; "Resume" goes on.', handled, files ?? '?')
    : '';
}

function summaryLine(summary: IngestDone, trans: TranslationBundle): string {
  const { added = 0, changed = 0, unchanged = 0, removed = 0, failed = 0 } = summary;
  const parts: string[] = [];
  const say = (count: number, text: string) => {
    if (count) {
      parts.push(text);
    }
  };
  say(added, trans._n('%1 added', '%1 added', added));
  say(changed, trans._n('%1 changed', '%1 changed', changed));
  say(unchanged, trans._n('%1 unchanged', '%1 unchanged', unchanged));
  say(removed, trans._n('%1 removed', '%1 removed', removed));
  say(failed, trans._n('%1 failed', '%1 failed', failed));
  return parts.length
    ? trans.__('Collection "%1": %2.', summary.collection, parts.join(', '))
    : trans.__('There is no document that UAIT can read.');
}
