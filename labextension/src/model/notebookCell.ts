/** Putting an answer into the current notebook. */
import type { MarkdownCell } from '@jupyterlab/cells';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { IAnswerCell } from './answerCell';
import { Store } from './store';

/** Insert a rendered Markdown cell below the active one and make it active; one undo step. */
export function insertBelow(panel: NotebookPanel, cell: IAnswerCell): void {
  const notebook = panel.content;
  const model = notebook.model;
  if (!model || model.readOnly) {
    return;
  }
  const index = Math.min(notebook.activeCellIndex + 1, model.cells.length);
  model.sharedModel.insertCell(index, { cell_type: 'markdown', ...cell });
  notebook.deselectAll();
  notebook.activeCellIndex = index;
  const widget = notebook.widgets[index];
  if (widget?.model.type === 'markdown') {
    (widget as MarkdownCell).rendered = true;
  }
  void notebook.scrollToItem(index, 'smart');
}

/** Follow whether there is a current notebook that takes a cell. */
export function canInsertInto(tracker: INotebookTracker | null): Store<boolean> {
  const store = new Store(false);
  const update = () => {
    const model = tracker?.currentWidget?.content.model;
    store.set(Boolean(model && !model.readOnly));
  };
  const follow = (_: unknown, panel: NotebookPanel | null) => {
    update();
    void panel?.context.ready.then(update);
  };
  tracker?.currentChanged.connect(follow);
  follow(tracker, tracker?.currentWidget ?? null);
  return store;
}
