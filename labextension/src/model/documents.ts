/** From the path of a citation to the path that JupyterLab's file manager knows. */

/**
 * Return `path` relative to the server's root, or null where it lies outside.
 *
 * `root` is the server root as JupyterLab's page knows it; a home folder in it is written `~`.
 */
export function contentsPath(path: string, root: string): string | null {
  const unixPath = path.replace(/\\/g, '/');
  if (unixPath.split('/').includes('..')) {
    return null;
  }
  const isAbsolute = unixPath.startsWith('/') || /^[a-z]:\//i.test(unixPath);
  if (!isAbsolute) {
    return unixPath.replace(/^\.\//, '');
  }
  const folder = root.replace(/\\/g, '/').replace(/\/+$/, '') + '/';
  if (folder.startsWith('~/')) {
    // The page does not tell where home is: what follows it must be there in the path.
    const at = unixPath.indexOf(folder.slice(1));
    return at < 0 ? null : unixPath.slice(at + folder.length - 1);
  }
  return unixPath.startsWith(folder) ? unixPath.slice(folder.length) : null;
}
