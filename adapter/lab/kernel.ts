import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { ElfError } from '../elf/reader.ts';
import type { LabArchitecture } from './arch.ts';
import type { LabLaunch } from './launch.ts';
import { builtinParameters, type ModuleInfo, moduleName, readModinfo } from './modinfo.ts';
import type { ModuleSource } from './modules.ts';

/** A kernel and its modules, where they lie on this machine. */
export interface LabKernel {
  readonly image: string;
  readonly release: string;
  readonly modules: ModuleSource;
}

/** What labs use of a package: its modules are some hundred megabytes. */
const OF_PACKAGES = [
  './boot/vmlinuz-*',
  '*/modules.*',
  '*/kernel/arch/*',
  '*/kernel/virt/*',
  '*/kernel/drivers/virtio/*',
  '*/kernel/drivers/char/virtio_console*',
  '*/kernel/drivers/crypto/ccp/*',
];

const PACKAGE_NAME = /^linux-image-[a-z0-9.+-]+$/;

/** Finds what a launch configuration names. @throws Error in words for people */
export function findKernel({ kernel, modules }: LabLaunch, arch: LabArchitecture): LabKernel {
  const there = existsSync(kernel);
  if (!there && PACKAGE_NAME.test(kernel)) return ofFolder(unpackPackage(downloadPackage(kernel)), modules, arch);
  if (!there) throw new Error(`"kernel" ${kernel}: there is no such file`);
  if (statSync(kernel).isDirectory()) return ofFolder(kernel, modules, arch);
  if (isPackage(kernel)) return ofFolder(unpackPackage(resolve(kernel)), modules, arch);
  return ofImage(kernel, modules, arch);
}

function ofFolder(folder: string, modules: readonly string[], arch: LabArchitecture): LabKernel {
  const built = join(folder, arch.imageOfTree);
  if (existsSync(built)) return ofImage(built, modules, arch);
  const boot = join(folder, 'boot');
  const images = existsSync(boot) ? readdirSync(boot).filter((name) => /^vmlinu[xz]/.test(name)) : [];
  if (images.length === 0)
    throw new Error(`"kernel" ${folder} has neither ${arch.imageOfTree} (a tree that was built) nor boot/vmlinuz-…`);
  if (images.length > 1) throw new Error(`"kernel" ${boot} has ${images.join(' and ')}: name one of them`);
  return ofImage(join(boot, images[0]!), modules, arch);
}

function ofImage(image: string, given: readonly string[], arch: LabArchitecture): LabKernel {
  const release = arch.releaseOf(readFileSync(image).subarray(0, 1 << 17));
  if (release === undefined)
    throw new Error(`"kernel" ${image} is no ${arch.imageName} of ${arch.name}: it lacks the boot protocol's header`);
  const inTree = resolve(image).endsWith(`/${arch.imageOfTree}`);
  const tree = resolve(image).slice(0, -arch.imageOfTree.length - 1);
  const near = inTree ? [tree] : [join(dirname(image), '..', 'lib', 'modules', release), join('/lib/modules', release)];
  return { image, release, modules: new ModuleFolders(given, near) };
}

/** Modules in folders, the first that has one counts. */
class ModuleFolders implements ModuleSource {
  readonly #paths = new Map<string, string>();
  readonly builtin: ReadonlyMap<string, readonly string[]> | undefined;

  constructor(given: readonly string[], near: readonly string[]) {
    for (const path of given) {
      if (!existsSync(path)) throw new Error(`"modules" ${path}: there is no such file or folder`);
      if (statSync(path).isDirectory()) this.#addFolder(path);
      else this.#add(path);
    }
    const own = near.find((folder) => existsSync(folder));
    if (own === undefined) return;
    this.#addFolder(own);
    const builtin = join(own, 'modules.builtin');
    if (!existsSync(builtin)) return;
    const modinfo = join(own, 'modules.builtin.modinfo');
    const parameters = existsSync(modinfo) ? builtinParameters(readFileSync(modinfo, 'latin1')) : new Map();
    this.builtin = new Map(
      readFileSync(builtin, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => [moduleName(line), parameters.get(moduleName(line)) ?? []]),
    );
  }

  #add(path: string): void {
    const name = moduleName(path);
    if (!this.#paths.has(name)) this.#paths.set(name, path);
  }

  #addFolder(folder: string): void {
    // A source tree is large, and its list of modules is short.
    const list = join(folder, 'modules.order');
    if (existsSync(list)) {
      for (const line of readFileSync(list, 'utf8').split('\n')) {
        const path = join(folder, line.replace(/^kernel\/(?=.*\.o$)/, '').replace(/\.o$/, '.ko'));
        const found = ['', '.xz', '.gz', '.zst'].map((end) => path + end).find((each) => existsSync(each));
        if (line !== '' && found !== undefined) this.#add(found);
      }
      return;
    }
    for (const entry of readdirSync(folder, { recursive: true, encoding: 'utf8' }))
      if (/\.ko(\.(xz|gz|zst))?$/.test(entry)) this.#add(join(folder, entry));
  }

  read(name: string): { path: string; bytes: Uint8Array; info: ModuleInfo } | undefined {
    const path = this.#paths.get(name);
    if (path === undefined) return undefined;
    const bytes = unpacked(path);
    try {
      return { path, bytes, info: readModinfo(bytes) };
    } catch (error) {
      if (!(error instanceof ElfError)) throw error;
      throw new Error(`${path} is no kernel module: ${error.message}`);
    }
  }
}

/** A file that may be compressed, as whole. */
function unpacked(path: string): Uint8Array {
  if (path.endsWith('.gz')) return gunzipSync(readFileSync(path));
  const program = path.endsWith('.xz') ? 'xz' : path.endsWith('.zst') ? 'zstd' : undefined;
  if (program === undefined) return readFileSync(path);
  const { stdout, status, stderr, error } = spawnSync(program, ['-dc', path], { maxBuffer: 1 << 30 });
  if (error) throw new Error(`${path} is compressed, and there is no ${program} here to unpack it`);
  if (status !== 0) throw new Error(`${path} cannot be unpacked: ${stderr.toString().trim()}`);
  return stdout;
}

// ---- Debian packages

/** What every archive of `ar` begins with, and so every package. */
function isPackage(path: string): boolean {
  return path.endsWith('.deb') || readFileSync(path).subarray(0, 21).toString('latin1') === '!<arch>\ndebian-binary';
}

function cacheFolder(): string {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'kvm-mmu', 'kernels');
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** The folder with a package's kernel and modules. */
function unpackPackage(path: string): string {
  const { size, mtimeMs } = statSync(path);
  const folder = join(cacheFolder(), `${basename(path, '.deb')}-${size}-${Math.floor(mtimeMs)}`);
  if (existsSync(folder)) return folder;
  const partial = `${folder}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  // tar complains of patterns that match nothing: what is missing shows when it is looked for.
  const script =
    'package=$1; shift; dpkg-deb --fsys-tarfile "$package" | { tar -x -C "$@" 2>/dev/null; cat >/dev/null; }';
  try {
    if (spawnSync('dpkg-deb', ['--version']).error)
      throw new Error(
        'there is no dpkg-deb here to unpack it: install dpkg, or unpack it elsewhere and name the folder',
      );
    execFileSync('bash', ['-o', 'pipefail', '-c', script, 'bash', path, partial, '--wildcards', ...OF_PACKAGES], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    renameSync(partial, folder);
  } catch (error) {
    rmSync(partial, { recursive: true, force: true });
    if (existsSync(folder)) return folder;
    const { stderr, message } = error as Error & { stderr?: Buffer };
    throw new Error(`"kernel" ${path} cannot be unpacked: ${stderr?.toString().trim().split('\n')[0] || message}`);
  }
  return folder;
}

/** Fetches a package by its name, once; a metapackage stands for the kernel that it depends on. */
function downloadPackage(name: string): string {
  const folder = join(cacheFolder(), 'packages');
  mkdirSync(folder, { recursive: true });
  const ask = (program: string, ...args: string[]) => spawnSync(program, args, { cwd: folder, encoding: 'utf8' });
  const known = (each: string) =>
    readdirSync(folder).find((file) => file.startsWith(`${each}_`) && file.endsWith('.deb'));
  const depends = ask('apt-cache', 'depends', '--important', name);
  const real = /Depends: (linux-image-\S+)/.exec(depends.stdout ?? '')?.[1] ?? name;
  const had = known(real);
  if (had !== undefined) return join(folder, had);
  const { error, status, stderr } = ask('apt-get', 'download', '-q', real);
  if (error) throw new Error(`"kernel" ${name}: there is no such file, and no apt-get that could download the package`);
  const found = known(real);
  if (status !== 0 || found === undefined)
    throw new Error(
      `"kernel" ${name}: there is no such file, and apt-get cannot download such a package: ${stderr.trim().split('\n').at(-1)}`,
    );
  return join(folder, found);
}
