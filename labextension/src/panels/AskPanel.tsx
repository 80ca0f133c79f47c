/** The side panel: ask a collection, read the answer as it comes, keep it. */
import {
  addIcon,
  clearIcon,
  ReactWidget,
  refreshIcon
} from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import React, {
  useCallback,
  useEffect,
  useLayoutEffect,
  useRef,
  useState
} from 'react';
import { describeProblem } from '../api/problem';
import { AddDocuments } from '../components/AddDocuments';
import { ExchangeView } from '../components/ExchangeView';
import { IconButton } from '../components/IconButton';
import { Notice } from '../components/Notice';
import { Pickers } from '../components/Pickers';
import { QuestionBox } from '../components/QuestionBox';
import type { AskSession } from '../model/askSession';
import type { Catalogue } from '../model/catalogue';
import type { IExchange } from '../model/exchange';
import { isRunning } from '../model/exchange';
import type { Ingestion } from '../model/ingestion';
import { useStore } from '../model/store';
import type { IPanelContext } from './context';
import { PanelContext, usePanel } from './context';

export const PANEL_ID = 'uait-knowledge-chat';

// what a notebook runs to add documents
const MAGICS = ['%load_ext uait_kernel', '%kb add PATH'];

export interface IAskPanelModels {
  readonly catalogue: Catalogue;
  readonly session: AskSession;
  readonly ingestion: Ingestion;
  /** Longest answer, in tokens, that a question asks for now. */
  readonly maxTokens: () => number;
}

/** The widget around the view; state lives in its models, so it may be moved between side bars. */
export class AskPanel extends ReactWidget {
  constructor(
    private readonly _models: IAskPanelModels,
    private readonly _context: IPanelContext
  ) {
    super();
    this.id = PANEL_ID;
    this.addClass('jp-uait-AskPanel');
  }

  protected override render(): React.JSX.Element {
    return (
      <PanelContext.Provider value={this._context}>
        <AskView {...this._models} inputRef={this._input} />
      </PanelContext.Provider>
    );
  }

  protected override onActivateRequest(_msg: Message): void {
    this._input.current?.focus();
  }

  protected override onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    if (this.isVisible) {
      void this._models.catalogue.refresh();
    }
  }

  protected override onAfterShow(_msg: Message): void {
    // Nothing is asked of the server before the panel is seen; and documents may have been
    // added from a notebook since it was.
    void this._models.catalogue.refresh();
  }

  private readonly _input = React.createRef<HTMLTextAreaElement>();
}

export interface IAskViewProps extends IAskPanelModels {
  readonly inputRef: React.RefObject<HTMLTextAreaElement>;
}

export function AskView(props: IAskViewProps): React.JSX.Element {
  const { trans } = usePanel();
  const { catalogue, session, ingestion, maxTokens, inputRef } = props;
  const state = useStore(catalogue.state);
  const exchanges = useStore(session.exchanges);
  const ingesting = useStore(ingestion.state).phase === 'running';
  const [adding, setAdding] = useState(false);
  const busy = exchanges.some(isRunning);
  const empty = state.phase === 'ready' && !state.collections.length;
  const { collection, model } = state;
  const missing =
    state.phase === 'loading' ? trans.__('Loading…') : trans.__('Add documents first');
  const blocked = state.collections.length ? '' : missing;

  const refresh = useCallback(() => void catalogue.refresh(), [catalogue]);
  // What an ingest reports stays in sight until the form is closed.
  useEffect(() => {
    if (ingesting) {
      setAdding(true);
    }
  }, [ingesting]);

  const retry = useCallback(
    (exchange: IExchange) => void session.ask(exchange, maxTokens()),
    [session, maxTokens]
  );
  return (
    <>
      <header className="jp-uait-Header">
        <h2>{trans.__('Ask your documents')}</h2>
        <IconButton
          icon={addIcon}
          label={trans.__('Add documents')}
          expanded={adding || empty}
          disabled={empty}
          onClick={() => setAdding(!adding)}
        />
        <IconButton
          icon={refreshIcon}
          label={trans.__('Refresh collections and models')}
          onClick={refresh}
        />
        <IconButton
          icon={clearIcon}
          label={trans.__('Clear the answers')}
          disabled={!exchanges.length}
          onClick={() => session.clear()}
        />
      </header>
      {!empty && (
        <Pickers
          catalogue={catalogue}
          state={state}
          onResume={name => void ingestion.add(name, null)}
        />
      )}
      {state.problem && (
        <Notice kind="error" action={{ label: trans.__('Try again'), run: refresh }}>
          {describeProblem(state.problem, trans)}
        </Notice>
      )}
      {empty && <Welcome />}
      {(adding || empty) && (
        <AddDocuments
          ingestion={ingestion}
          collection={collection || 'default'}
          autoFocus={!empty}
        />
      )}
      <History
        exchanges={exchanges}
        loading={state.phase === 'loading'}
        onRetry={busy ? null : retry}
      />
      <QuestionBox
        inputRef={inputRef}
        busy={busy}
        blocked={blocked}
        onAsk={question =>
          void session.ask({ question, collection, model }, maxTokens())
        }
        onStop={() => session.stop()}
      />
    </>
  );
}

function Welcome(): React.JSX.Element {
  const { trans } = usePanel();
  return (
    <div className="jp-uait-Welcome">
      <p>{trans.__('There is no collection yet. Add a folder of documents here:')}</p>
      <p className="jp-uait-hint">
        {trans.__('or in a notebook:')}{' '}
        {MAGICS.map(line => (
          <code key={line}>{line}</code>
        ))}
      </p>
    </div>
  );
}

function History(props: {
  readonly exchanges: readonly IExchange[];
  readonly loading: boolean;
  readonly onRetry: ((exchange: IExchange) => void) | null;
}): React.JSX.Element {
  const { trans } = usePanel();
  const { exchanges, loading, onRetry } = props;
  const log = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const count = exchanges.length;

  useLayoutEffect(() => {
    following.current = true;
  }, [count]);
  useLayoutEffect(() => {
    if (log.current && following.current) {
      log.current.scrollTop = readingPosition(log.current);
    }
  }, [exchanges]);
  const onScroll = () => {
    const node = log.current;
    if (node) {
      following.current = Math.abs(node.scrollTop - readingPosition(node)) < 24;
    }
  };
  return (
    <div
      ref={log}
      className="jp-uait-History"
      role="log"
      aria-live="polite"
      aria-label={trans.__('Answers')}
      tabIndex={0}
      onScroll={onScroll}
    >
      {loading && !count && (
        <p className="jp-uait-hint">{trans.__('Loading collections and models…')}</p>
      )}
      {exchanges.map(exchange => (
        <ExchangeView key={exchange.id} exchange={exchange} onRetry={onRetry} />
      ))}
    </div>
  );
}

/** Follow the text as it comes, but keep the newest question and its evidence in sight. */
function readingPosition(log: HTMLElement): number {
  const end = log.scrollHeight - log.clientHeight;
  const newest = log.lastElementChild as HTMLElement | null;
  return newest ? Math.min(end, newest.offsetTop) : end;
}
