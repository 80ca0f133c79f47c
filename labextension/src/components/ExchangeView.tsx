/** One question with its answer: evidence first, then the model's words, sources and figures. */
import { addBelowIcon, checkIcon, copyIcon } from '@jupyterlab/ui-components';
import type { TranslationBundle } from '@jupyterlab/translation';
import React, { memo, useState } from 'react';
import { describeProblem } from '../api/problem';
import type { Answer } from '../api/types';
import { answerCell, answerText } from '../model/answerCell';
import type { IExchange } from '../model/exchange';
import {
  answeringModel,
  extractCitation,
  hasText,
  isRunning,
  missingPhrasingNote
} from '../model/exchange';
import { AUTO_MODEL } from '../model/catalogue';
import { useStore } from '../model/store';
import { usePanel } from '../panels/context';
import { Citations } from './Citations';
import { IconButton } from './IconButton';
import { Notice } from './Notice';

export interface IExchangeViewProps {
  readonly exchange: IExchange;
  /** Ask the same again; null while something else is asked. */
  readonly onRetry: ((exchange: IExchange) => void) | null;
}

export const ExchangeView = memo(function ExchangeView(
  props: IExchangeViewProps
): React.JSX.Element {
  const { trans } = usePanel();
  const { exchange, onRetry } = props;
  const { question, collection, phase, declined, citations, answer, problem } =
    exchange;
  const running = isRunning(exchange);
  const again = onRetry
    ? { label: trans.__('Ask again'), run: () => onRetry(exchange) }
    : undefined;
  return (
    <article className="jp-uait-Exchange" aria-busy={running} aria-label={question}>
      <h3 className="jp-uait-Exchange-question">{question}</h3>
      {phase === 'searching' && (
        <Waiting>{trans.__('Searching "%1"…', collection)}</Waiting>
      )}
      {declined ? (
        <Notice kind="info">
          {trans.__(
            'The documents in "%1" do not answer this, so no answer was written. Ask in other words, or add documents.',
            collection
          )}
        </Notice>
      ) : (
        <AnswerBody exchange={exchange} />
      )}
      {declined && citations.length > 0 && (
        <p className="jp-uait-hint">{trans.__('Closest passages:')}</p>
      )}
      <Citations collection={collection} citations={citations} />
      {phase === 'stopped' && (
        <Notice kind="warning" action={again}>
          {trans.__('Stopped. The answer is not complete.')}
        </Notice>
      )}
      {problem && (
        <Notice kind="error" action={problem.isPermission ? undefined : again}>
          {describeProblem(problem, trans)}
        </Notice>
      )}
      {!running && (
        <footer className="jp-uait-Exchange-foot">
          {answer && <span className="jp-uait-figures">{figures(answer, trans)}</span>}
          {hasText(exchange) && <Actions exchange={exchange} />}
        </footer>
      )}
    </article>
  );
});

function AnswerBody({ exchange }: { readonly exchange: IExchange }): React.JSX.Element {
  const { trans } = usePanel();
  const { extract, phrasing, phase, answer } = exchange;
  const note = answer && missingPhrasingNote(answer);
  const number = extractCitation(exchange);
  const model = answeringModel(exchange);
  return (
    <div className="jp-uait-Answer">
      {extract && (
        <blockquote className="jp-uait-quote jp-uait-extract">
          {extract}
          {number !== null && <sup className="jp-uait-marker">{` [${number}]`}</sup>}
        </blockquote>
      )}
      {phase === 'phrasing' && !phrasing && (
        <Waiting>{trans.__('Waiting for the model…')}</Waiting>
      )}
      {phrasing && (
        <>
          <p className="jp-uait-phrased-by">
            {model === AUTO_MODEL
              ? trans.__('phrased by the model, not checked')
              : trans.__('phrased by %1, not checked', model)}
          </p>
          <div
            className={`jp-uait-phrasing${phase === 'phrasing' ? ' jp-uait-mod-streaming' : ''}`}
          >
            {phrasing}
          </div>
        </>
      )}
      {note && <p className="jp-uait-phrased-by">{note}</p>}
    </div>
  );
}

function Actions({ exchange }: { readonly exchange: IExchange }): React.JSX.Element {
  const { trans, canInsert, insert, copy } = usePanel();
  const insertable = useStore(canInsert);
  const [done, setDone] = useState<'copied' | 'inserted' | null>(null);
  const spoken = { copied: trans.__('Copied'), inserted: trans.__('Inserted') };
  return (
    <span className="jp-uait-Actions">
      <span className="jp-uait-spoken" role="status">
        {done && spoken[done]}
      </span>
      <IconButton
        icon={done === 'copied' ? checkIcon : copyIcon}
        label={trans.__('Copy')}
        onClick={() => {
          copy(answerText(exchange, trans));
          setDone('copied');
        }}
      />
      <IconButton
        icon={done === 'inserted' ? checkIcon : addBelowIcon}
        label={
          insertable
            ? trans.__('Insert as cell')
            : trans.__('Insert as cell (open a notebook first)')
        }
        disabled={!insertable}
        onClick={() => {
          insert(answerCell(exchange, trans));
          setDone('inserted');
        }}
      />
    </span>
  );
}

function Waiting({
  children
}: {
  readonly children: React.ReactNode;
}): React.JSX.Element {
  return (
    <p className="jp-uait-Waiting">
      <span className="jp-uait-Spinner" aria-hidden="true" />
      {children}
    </p>
  );
}

function figures(answer: Answer, trans: TranslationBundle): string {
  const { model, backend, usage, seconds, first_token_seconds: first } = answer;
  const { prompt_tokens: read = 0, completion_tokens: written = 0 } = usage;
  const parts: string[] = [];
  if (model) {
    parts.push(backend ? `${model} (${backend})` : model);
    parts.push(trans.__('%1 + %2 tokens', read, written));
  }
  if (typeof first === 'number') {
    parts.push(trans.__('first after %1 s', first.toFixed(1)));
  }
  parts.push(trans.__('%1 s in all', seconds.toFixed(1)));
  return parts.join(' · ');
}
