/** What can be asked and who can answer: collections and chat models, with the choice of each. */
import type { IApi } from '../api/client';
import { ApiProblem } from '../api/problem';
import type { CollectionStatus, ModelInfo } from '../api/types';
import { Store } from './store';

export const AUTO_MODEL = 'auto';

export interface ICatalogue {
  readonly phase: 'loading' | 'ready' | 'failed';
  readonly collections: readonly CollectionStatus[];
  /** Chat models only. */
  readonly models: readonly ModelInfo[];
  /** Name of the chosen collection; empty where there is none. */
  readonly collection: string;
  /** Id of the chosen model, or `auto`. */
  readonly model: string;
  readonly problem: ApiProblem | null;
}

export class Catalogue {
  readonly state = new Store<ICatalogue>({
    phase: 'loading',
    collections: [],
    models: [],
    collection: '',
    model: AUTO_MODEL,
    problem: null
  });

  constructor(private readonly _api: Pick<IApi, 'collections' | 'models'>) {}

  /** Read both lists again; a choice that is still there is kept. */
  async refresh(): Promise<void> {
    try {
      const [collections, models] = await Promise.all([
        this._api.collections(),
        this._api.models()
      ]);
      const chat = models.filter(model => model.kind === 'chat');
      const { collection, model } = this.state.get();
      this.state.patch({
        phase: 'ready',
        problem: null,
        collections,
        models: chat,
        collection: pickCollection(
          collections,
          collection || this._preferredCollection
        ),
        model: chat.some(known => known.id === model) ? model : AUTO_MODEL
      });
    } catch (reason) {
      const problem = reason instanceof ApiProblem ? reason : new ApiProblem('network');
      this.state.patch({ phase: 'failed', problem });
    }
  }

  /** Choose a collection. */
  chooseCollection(collection: string): void {
    this.state.patch({ collection });
  }

  /** Choose a model. */
  chooseModel(model: string): void {
    this.state.patch({ model });
  }

  /** Choose what the settings say, where it exists or may still come. */
  prefer(collection: string, model: string): void {
    const now = this.state.get();
    this._preferredCollection = collection;
    if (collection) {
      this.chooseCollection(
        now.phase === 'ready' ? pickCollection(now.collections, collection) : collection
      );
    }
    if (
      now.phase !== 'ready' ||
      model === AUTO_MODEL ||
      now.models.some(known => known.id === model)
    ) {
      this.chooseModel(model || AUTO_MODEL);
    }
  }

  private _preferredCollection = '';
}

/** Return `wanted` if it exists, else the first with documents, else the first, else nothing. */
function pickCollection(
  collections: readonly CollectionStatus[],
  wanted: string
): string {
  const found =
    collections.find(collection => collection.name === wanted) ??
    collections.find(collection => collection.documents > 0) ??
    collections[0];
  return found?.name ?? '';
}
