import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { contentsPath } from '../model/documents';
import { canInsertInto, insertBelow } from '../model/notebookCell';

describe('contentsPath', () => {
  it.each([
    ['docs/a b.md', ['/srv/x/docs'], '/srv/x', 'docs/a b.md'],
    ['docs/a.md', ['/srv/x/deep/docs'], '/srv/x/', 'deep/docs/a.md'],
    ['a.md', ['/srv/x/notes', '/srv/x/deep/a.md'], '/srv/x', 'deep/a.md'],
    ['docs/a.md', ['/srv/y/docs'], '/srv/x', null],
    ['docs/a.md', [], '/srv/x', null],
    ['/srv/x/docs/a.md', [], '/srv/x', 'docs/a.md'],
    ['/srv/xy/a.md', [], '/srv/x', null],
    ['/etc/passwd', [], '/srv/x', null],
    ['docs/../../secret.md', ['/srv/x/docs'], '/srv/x', null],
    ['docs/a.md', ['/home/ann/work/docs'], '~/work', 'docs/a.md'],
    ['docs/a.md', ['/home/ann/play/docs'], '~/work', null],
    ['docs\\a.md', ['C:\\work\\docs'], 'C:/work', 'docs/a.md']
  ])('maps %j of %j under %j to %j', (cited, sources, root, expected) => {
    expect(contentsPath(cited, sources, root)).toBe(expected);
  });
});

interface ICell {
  readonly cell_type: string;
  readonly source: string;
}

/** As much of a notebook as an insertion touches. */
function notebookPanel(options: { cells: number; active: number; readOnly?: boolean }) {
  const cells: ICell[] = Array.from({ length: options.cells }, () => ({
    cell_type: 'code',
    source: ''
  }));
  const content = {
    activeCellIndex: options.active,
    widgets: cells.map(cell => ({ model: { type: cell.cell_type }, rendered: false })),
    deselectAll: jest.fn(),
    scrollToItem: jest.fn(() => Promise.resolve()),
    model: {
      readOnly: options.readOnly ?? false,
      cells,
      sharedModel: {
        insertCell: (index: number, cell: ICell) => {
          cells.splice(index, 0, cell);
          content.widgets.splice(index, 0, {
            model: { type: cell.cell_type },
            rendered: false
          });
        }
      }
    }
  };
  const panel = { content, context: { ready: Promise.resolve() } };
  return { cells, content, panel: panel as unknown as NotebookPanel };
}

describe('insertBelow', () => {
  const cell = { source: 'answer', metadata: { uait: { generated: true } } };

  it('puts a rendered Markdown cell below the active one and makes it active', () => {
    const { cells, content, panel } = notebookPanel({ cells: 3, active: 1 });
    insertBelow(panel, cell);
    expect(cells[2]).toEqual({ cell_type: 'markdown', ...cell });
    expect(content.activeCellIndex).toBe(2);
    expect(content.widgets[2]?.rendered).toBe(true);
  });

  it('works in a notebook without cells', () => {
    const { cells, panel } = notebookPanel({ cells: 0, active: -1 });
    insertBelow(panel, cell);
    expect(cells).toHaveLength(1);
  });

  it('leaves a read-only notebook alone', () => {
    const { cells, panel } = notebookPanel({ cells: 1, active: 0, readOnly: true });
    insertBelow(panel, cell);
    expect(cells).toHaveLength(1);
  });
});

describe('canInsertInto', () => {
  it('is false without a notebook application', () => {
    expect(canInsertInto(null).get()).toBe(false);
  });

  it('follows the current notebook', async () => {
    type Slot = (sender: unknown, panel: NotebookPanel | null) => void;
    const slots: Slot[] = [];
    const tracker = {
      currentWidget: null as NotebookPanel | null,
      currentChanged: { connect: (slot: Slot) => slots.push(slot) }
    };
    const store = canInsertInto(tracker as unknown as INotebookTracker);
    const open = async (panel: NotebookPanel | null) => {
      tracker.currentWidget = panel;
      slots.forEach(slot => slot(tracker, panel));
      await Promise.resolve();
      return store.get();
    };
    expect(store.get()).toBe(false);
    expect(await open(notebookPanel({ cells: 1, active: 0 }).panel)).toBe(true);
    const locked = notebookPanel({ cells: 1, active: 0, readOnly: true });
    expect(await open(locked.panel)).toBe(false);
    expect(await open(null)).toBe(false);
  });
});
