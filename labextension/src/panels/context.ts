/** What every component of the panel may use: words, and the doors out of the panel. */
import type { TranslationBundle } from '@jupyterlab/translation';
import { createContext, useContext } from 'react';
import type { IAnswerCell } from '../model/answerCell';
import type { Store } from '../model/store';

export interface IPanelContext {
  readonly trans: TranslationBundle;

  /** Whether a notebook is there that takes a new cell. */
  readonly canInsert: Store<boolean>;

  /** Put a Markdown cell below the active cell of the current notebook. */
  readonly insert: (cell: IAnswerCell) => void;

  /** Put text on the system's clipboard. */
  readonly copy: (text: string) => void;

  /** Open a cited document; resolves to false where JupyterLab does not show it. */
  readonly open: (collection: string, path: string) => Promise<boolean>;
}

export const PanelContext = createContext<IPanelContext | null>(null);

/** Return the context of the panel around this component. */
export function usePanel(): IPanelContext {
  const context = useContext(PanelContext);
  if (!context) {
    throw new Error('A component of the panel is rendered outside of it.');
  }
  return context;
}
