// Finds a desktop VS Code, or downloads one.
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Whether a window can be opened. */
export const hasDisplay = () =>
  process.platform !== 'linux' || Boolean(process.env.DISPLAY || process.env.WAYLAND_DISPLAY);

/** An installed VS Code: $VSCODE_EXECUTABLE, else `code` on the PATH, else its usual place; undefined when there is none. */
export function findVSCode() {
  const { VSCODE_EXECUTABLE, PATH = '', HOME = '', LOCALAPPDATA = '', ProgramFiles = '' } = process.env;
  if (VSCODE_EXECUTABLE) {
    if (existsSync(VSCODE_EXECUTABLE)) return VSCODE_EXECUTABLE;
    throw new Error(
      `VSCODE_EXECUTABLE is ${VSCODE_EXECUTABLE}, which does not exist; give the path of VS Code, or unset it`,
    );
  }
  const onPath = PATH.split(delimiter).filter(Boolean);
  const bundle = 'Applications/Visual Studio Code.app/Contents/Resources/app/bin/code';
  const candidates = {
    // On Windows `code` is a batch file in a folder below the program's; the program itself needs no shell.
    win32: [
      ...onPath
        .filter((folder) => existsSync(join(folder, 'code.cmd')))
        .map((folder) => join(folder, '..', 'Code.exe')),
      join(LOCALAPPDATA, 'Programs', 'Microsoft VS Code', 'Code.exe'),
      join(ProgramFiles, 'Microsoft VS Code', 'Code.exe'),
    ],
    darwin: [...onPath.map((folder) => join(folder, 'code')), join('/', bundle), join(HOME, bundle)],
    linux: [
      ...onPath.map((folder) => join(folder, 'code')),
      '/usr/share/code/bin/code',
      '/snap/bin/code',
      '/var/lib/flatpak/exports/bin/com.visualstudio.code',
    ],
  };
  return (candidates[process.platform] ?? candidates.linux).find((path) => existsSync(path));
}

/**
 * Downloads VS Code into .vscode-test, unless it is there, and returns the executable's path.
 * Throws when no data arrives for `idle` ms, or when it takes longer than `limit` ms.
 */
export async function downloadVSCode({ idle = 15_000, limit = 300_000 } = {}) {
  const { downloadAndUnzipVSCode, SilentReporter } = await import('@vscode/test-electron');
  console.log(`downloading VS Code into .vscode-test (at most ${limit / 60_000} minutes) …`);
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not finished after ${limit / 60_000} minutes`)), limit);
  });
  try {
    return await Promise.race([
      downloadAndUnzipVSCode({
        version: 'stable',
        cachePath: join(root, '.vscode-test'),
        timeout: idle,
        reporter: new SilentReporter(),
      }),
      late,
    ]);
  } catch (error) {
    throw new Error(`could not download VS Code: ${error.message}`);
  } finally {
    clearTimeout(timer);
  }
}
