/** The plugin of the Ask panel: builds it, wires it to JupyterLab, reads its settings. */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { Clipboard, ICommandPalette } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { ApiClient } from '../api/client';
import { uaitIcon } from '../icons';
import { AskSession } from '../model/askSession';
import { Catalogue } from '../model/catalogue';
import { contentsPath } from '../model/documents';
import { Ingestion } from '../model/ingestion';
import { canInsertInto, insertBelow } from '../model/notebookCell';
import { AskPanel } from '../panels/AskPanel';

const PLUGIN_ID = 'uait:ask';
const OPEN_COMMAND = 'uait:open-ask';
const DEFAULT_MAX_TOKENS = 120;

const ask: JupyterFrontEndPlugin<void> = {
  id: PLUGIN_ID,
  description:
    'A side panel that answers questions from your documents, with citations.',
  autoStart: true,
  optional: [
    ITranslator,
    ILayoutRestorer,
    ICommandPalette,
    INotebookTracker,
    ISettingRegistry
  ],
  activate
};

export default ask;

function activate(
  app: JupyterFrontEnd,
  translator: ITranslator | null,
  restorer: ILayoutRestorer | null,
  palette: ICommandPalette | null,
  notebooks: INotebookTracker | null,
  settings: ISettingRegistry | null
): void {
  const trans = (translator ?? nullTranslator).load('uait');
  const api = new ApiClient(app.serviceManager.serverSettings);
  const catalogue = new Catalogue(api);
  const ingestion = new Ingestion(api, collection => {
    catalogue.chooseCollection(collection);
    void catalogue.refresh();
  });
  let maxTokens = DEFAULT_MAX_TOKENS;

  const panel = new AskPanel(
    { catalogue, ingestion, session: new AskSession(api), maxTokens: () => maxTokens },
    {
      trans,
      canInsert: canInsertInto(notebooks),
      insert: cell => {
        if (notebooks?.currentWidget) {
          insertBelow(notebooks.currentWidget, cell);
        }
      },
      copy: text => Clipboard.copyToSystem(text),
      open: (name, path) => {
        const { collections } = catalogue.state.get();
        const { sources = [] } = collections.find(known => known.name === name) ?? {};
        return openDocument(app, path, sources);
      }
    }
  );
  panel.title.icon = uaitIcon;
  panel.title.caption = trans.__('UAIT: ask your documents');
  panel.node.setAttribute('role', 'region');
  panel.node.setAttribute('aria-label', trans.__('UAIT: ask your documents'));
  // Notifications cover the lower right corner, where the Ask button would be.
  app.shell.add(panel, 'left', { rank: 500, type: 'UAIT' });
  restorer?.add(panel, panel.id);

  app.commands.addCommand(OPEN_COMMAND, {
    label: trans.__('Ask Your Documents'),
    caption: trans.__('Open the UAIT panel and write a question'),
    icon: uaitIcon,
    describedBy: { args: { type: 'object', properties: {} } },
    execute: async () => {
      // The palette gives the focus back to the document once a command has begun.
      await new Promise(resolve => requestAnimationFrame(resolve));
      app.shell.activateById(panel.id);
    }
  });
  palette?.addItem({ command: OPEN_COMMAND, category: trans.__('UAIT') });

  void settings?.load(PLUGIN_ID).then(loaded => {
    const read = () => {
      const text = (name: string) => loaded.get(name).composite as string;
      maxTokens = loaded.get('maxTokens').composite as number;
      catalogue.prefer(text('defaultCollection'), text('defaultModel'));
    };
    loaded.changed.connect(read);
    read();
  });
}

/** Open a cited document where the file manager has it; return whether it has. */
async function openDocument(
  app: JupyterFrontEnd,
  path: string,
  sources: readonly string[]
): Promise<boolean> {
  const known = contentsPath(path, sources, PageConfig.getOption('serverRoot'));
  if (known === null) {
    return false;
  }
  try {
    await app.serviceManager.contents.get(known, { content: false });
  } catch {
    return false;
  }
  await app.commands.execute('docmanager:open', { path: known });
  return true;
}
