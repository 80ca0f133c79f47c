/** Choice of collection and model, and what is to know about the chosen ones. */
import { HTMLSelect } from '@jupyterlab/ui-components';
import type { TranslationBundle } from '@jupyterlab/translation';
import React, { useId } from 'react';
import type { CollectionStatus, ModelInfo } from '../api/types';
import type { Catalogue, ICatalogue } from '../model/catalogue';
import { AUTO_MODEL } from '../model/catalogue';
import { usePanel } from '../panels/context';

export interface IPickersProps {
  readonly catalogue: Catalogue;
  readonly state: ICatalogue;
  /** Go on with what an interrupted ingest left. */
  readonly onResume: (collection: string) => void;
}

export function Pickers({
  catalogue,
  state,
  onResume
}: IPickersProps): React.JSX.Element {
  const { trans } = usePanel();
  const collectionId = useId();
  const modelId = useId();
  const chosen = state.collections.find(({ name }) => name === state.collection);
  const model = chosenModel(state);
  return (
    <div className="jp-uait-Pickers">
      <label htmlFor={collectionId}>{trans.__('Collection')}</label>
      <HTMLSelect
        id={collectionId}
        value={state.collection}
        disabled={!state.collections.length}
        onChange={event => catalogue.chooseCollection(event.target.value)}
      >
        {state.collections.map(({ name }) => (
          <option key={name} value={name}>
            {name}
          </option>
        ))}
      </HTMLSelect>
      <label htmlFor={modelId}>{trans.__('Model')}</label>
      <HTMLSelect
        id={modelId}
        value={state.model}
        title={model?.note ?? model?.description}
        onChange={event => catalogue.chooseModel(event.target.value)}
      >
        <option value={AUTO_MODEL}>{autoLabel(state.models, trans)}</option>
        {state.models.map(info => (
          <option
            key={info.id}
            value={info.id}
            disabled={!info.backend}
            title={info.note ?? info.description}
          >
            {modelLabel(info, trans)}
          </option>
        ))}
      </HTMLSelect>
      {chosen && <CollectionLine collection={chosen} onResume={onResume} />}
      {state.model !== AUTO_MODEL && model?.note && (
        <p className="jp-uait-Pickers-note">{model.note}</p>
      )}
    </div>
  );
}

function CollectionLine(props: {
  readonly collection: CollectionStatus;
  readonly onResume: (collection: string) => void;
}): React.JSX.Element {
  const { trans } = usePanel();
  const { name, documents, chunks, pending, failed, ingesting } = props.collection;
  const parts = [
    trans._n('%1 document', '%1 documents', documents),
    trans._n('%1 passage', '%1 passages', chunks)
  ];
  if (failed.length) {
    parts.push(trans._n('%1 file unreadable', '%1 files unreadable', failed.length));
  }
  return (
    <p className="jp-uait-Pickers-note">
      {parts.join(' · ')}
      {ingesting && ` · ${trans.__('adding documents…')}`}
      {pending.length > 0 && !ingesting && (
        <>
          {` · ${trans._n('%1 file left to add', '%1 files left to add', pending.length)} `}
          <button
            type="button"
            className="jp-uait-LinkButton"
            onClick={() => props.onResume(name)}
          >
            {trans.__('Resume')}
          </button>
        </>
      )}
    </p>
  );
}

function chosenModel(state: ICatalogue): ModelInfo | undefined {
  return state.models.find(info =>
    state.model === AUTO_MODEL ? info.default : info.id === state.model
  );
}

function autoLabel(models: readonly ModelInfo[], trans: TranslationBundle): string {
  const info = models.find(model => model.default);
  return info ? trans.__('Automatic (%1)', info.id) : trans.__('Automatic');
}

function modelLabel(info: ModelInfo, trans: TranslationBundle): string {
  if (!info.backend) {
    return trans.__('%1 (cannot run here)', info.id);
  }
  if (info.state === 'not-pulled') {
    return trans.__('%1 (not downloaded yet)', info.id);
  }
  if (info.state === 'failed') {
    return trans.__('%1 (failed to load)', info.id);
  }
  return info.id;
}
