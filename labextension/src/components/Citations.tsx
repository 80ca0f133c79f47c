/** The numbered sources of an answer: where each stands, its words on demand, a way to open it. */
import { caretRightIcon } from '@jupyterlab/ui-components';
import React, { useId, useState } from 'react';
import type { Citation } from '../api/types';
import { usePanel } from '../panels/context';

export function Citations(props: {
  readonly collection: string;
  readonly citations: readonly Citation[];
}): React.JSX.Element | null {
  const { trans } = usePanel();
  if (!props.citations.length) {
    return null;
  }
  return (
    <ol className="jp-uait-Citations" aria-label={trans.__('Sources')}>
      {props.citations.map(citation => (
        <CitationItem
          key={citation.number}
          collection={props.collection}
          citation={citation}
        />
      ))}
    </ol>
  );
}

function CitationItem(props: {
  readonly collection: string;
  readonly citation: Citation;
}): React.JSX.Element {
  const { trans, open } = usePanel();
  const [expanded, setExpanded] = useState(false);
  const [missing, setMissing] = useState(false);
  const quoteId = useId();
  const { number, path, place, quote } = props.citation;
  const show = async () => setMissing(!(await open(props.collection, path)));
  return (
    <li className="jp-uait-Citation" value={number}>
      <div className="jp-uait-Citation-head">
        <button
          type="button"
          className="jp-uait-Citation-toggle"
          aria-expanded={expanded}
          aria-controls={quoteId}
          aria-label={trans.__('Passage of source %1', number)}
          onClick={() => setExpanded(!expanded)}
        >
          <caretRightIcon.react tag="span" aria-hidden="true" elementSize="normal" />
        </button>
        <span className="jp-uait-Citation-number">{`[${number}]`}</span>
        <span className="jp-uait-Citation-where">
          <button
            type="button"
            className="jp-uait-LinkButton jp-uait-path"
            title={trans.__('Open %1', path)}
            onClick={() => void show()}
          >
            {path}
          </button>{' '}
          <span className="jp-uait-Citation-place">{place.label}</span>
        </span>
      </div>
      {missing && (
        <p className="jp-uait-hint" role="status">
          {trans.__(
            'JupyterLab does not show this file: it lies outside of its folder.'
          )}
        </p>
      )}
      <blockquote id={quoteId} className="jp-uait-quote" hidden={!expanded}>
        {quote}
      </blockquote>
    </li>
  );
}
