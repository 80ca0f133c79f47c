/** From the path of a citation to the path that JupyterLab's file manager knows. */

/**
 * Return where the file manager has a cited document, or null where it lies outside of its root.
 *
 * @param cited - path as a citation says it: it begins with the name of the folder or file that
 * was added, or is absolute where two added folders have the same name.
 * @param sources - absolute paths of the folders and files that were added to the collection.
 * @param root - root of the server as JupyterLab's page knows it; a home folder in it is `~`.
 */
export function contentsPath(
  cited: string,
  sources: readonly string[],
  root: string
): string | null {
  const path = absolutePath(slashes(cited), sources.map(slashes));
  if (path === null || path.split('/').includes('..')) {
    return null;
  }
  const folder = slashes(root).replace(/\/+$/, '') + '/';
  if (folder.startsWith('~/')) {
    // The page does not tell where home is: what follows it must be there in the path.
    const at = path.indexOf(folder.slice(1));
    return at < 0 ? null : path.slice(at + folder.length - 1);
  }
  return path.startsWith(folder) ? path.slice(folder.length) : null;
}

function absolutePath(cited: string, sources: readonly string[]): string | null {
  if (cited.startsWith('/') || /^[a-z]:\//i.test(cited)) {
    return cited;
  }
  const [name] = cited.split('/');
  const source = sources.find(added => added.split('/').pop() === name);
  return source === undefined
    ? null
    : source.slice(0, source.lastIndexOf('/') + 1) + cited;
}

function slashes(path: string): string {
  return path.replace(/\\/g, '/');
}
