import { readSections } from '../elf/program.ts';

/** What a kernel module says of itself. */
export interface ModuleInfo {
  readonly name: string;
  readonly depends: readonly string[];
  /** The kernel release that it was built for. */
  readonly release: string;
  /** Names of its parameters. */
  readonly parameters: readonly string[];
}

/** As modules and `modules.builtin.modinfo` are called: the kernel takes `-` and `_` for the same. */
export function moduleName(written: string): string {
  return written
    .replace(/^.*\//, '')
    .replace(/\.ko(\.(xz|gz|zst))?$/, '')
    .replaceAll('-', '_');
}

/** Reads `.modinfo` of a module. @throws ElfError for what is no module */
export function readModinfo(file: Uint8Array): ModuleInfo {
  const section = readSections(file).find(({ name }) => name === '.modinfo');
  const pairs = new TextDecoder()
    .decode(section?.bytes ?? new Uint8Array())
    .split('\0')
    .map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)] as const);
  const value = (key: string): string => pairs.find(([each]) => each === key)?.[1] ?? '';
  return {
    name: moduleName(value('name')),
    depends: value('depends')
      .split(',')
      .filter((name) => name !== '')
      .map(moduleName),
    release: value('vermagic').split(' ')[0]!,
    parameters: [...new Set(pairs.filter(([key]) => key === 'parmtype').map(([, each]) => each.split(':')[0]!))],
  };
}

/** Parameters of what is built into a kernel: `modules.builtin.modinfo` has `module.key=value` for each. */
export function builtinParameters(modinfo: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const [, module, parameter] of modinfo.matchAll(/([\w-]+)\.parmtype=([^:\0]+):/g)) {
    const name = moduleName(module!);
    found.set(name, [...(found.get(name) ?? []), parameter!]);
  }
  return found;
}
