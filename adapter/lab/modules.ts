import type { ModuleInfo } from './modinfo.ts';
import { moduleName } from './modinfo.ts';

/** Where modules of a kernel are to be had. */
export interface ModuleSource {
  /** The module's file, unpacked; undefined where there is none. */
  read(name: string): { readonly path: string; readonly bytes: Uint8Array; readonly info: ModuleInfo } | undefined;
  /** What the kernel has built in, with the parameters of each as far as they are known; undefined where nothing is known. */
  readonly builtin: ReadonlyMap<string, readonly string[]> | undefined;
}

export interface LoadedModule {
  /** File name in the lab. */
  readonly file: string;
  readonly bytes: Uint8Array;
  /** `npt=0 nested=1` */
  readonly parameters: string;
}

export interface ModulePlan {
  /** In the order of loading. */
  readonly modules: readonly LoadedModule[];
  /** Parameters of what is built in, for the kernel's command line. */
  readonly append: readonly string[];
  /** Wanted modules that are not there, nor known to be built in. */
  readonly missing: readonly string[];
}

/**
 * Which modules are loaded, in which order, with which parameters.
 * @throws Error naming a module that does not fit the kernel, or a parameter that none has
 */
export function planModules(
  source: ModuleSource,
  release: string,
  wanted: readonly string[],
  params: Readonly<Record<string, string>>,
): ModulePlan {
  const order: { readonly info: ModuleInfo; readonly bytes: Uint8Array }[] = [];
  const missing: string[] = [];
  const seen = new Set<string>();
  const visit = (written: string, by: string | undefined): void => {
    const name = moduleName(written);
    if (seen.has(name)) return;
    seen.add(name);
    const found = source.read(name);
    if (!found) {
      if (source.builtin?.has(name)) return;
      if (by !== undefined) throw new Error(`${by}.ko needs the module ${name}, which is nowhere to be found`);
      missing.push(name);
      return;
    }
    const { info, bytes, path } = found;
    if (info.release !== release)
      throw new Error(
        `${path} does not fit: it is for the kernel ${info.release || '(it does not say which)'}, and this one is ${release}`,
      );
    for (const other of info.depends) visit(other, name);
    order.push({ info, bytes });
  };
  for (const name of wanted) visit(name, undefined);

  const given = new Map<string, string[]>();
  const append: string[] = [];
  for (const [written, value] of Object.entries(params)) {
    const dot = written.indexOf('.');
    const [module, name] = dot < 0 ? [undefined, written] : [moduleName(written.slice(0, dot)), written.slice(dot + 1)];
    const owners = order.filter(
      ({ info }) => info.parameters.includes(name) && (module === undefined || info.name === module),
    );
    const builtin = [...(source.builtin ?? [])].filter(
      ([each, names]) => seen.has(each) && names.includes(name) && (module === undefined || each === module),
    );
    if (owners.length + builtin.length > 1)
      throw new Error(
        `parameter "${written}": ${[...owners.map(({ info }) => info.name), ...builtin.map(([each]) => each)].join(' and ')} both have it: write MODULE.${name}`,
      );
    if (owners[0]) given.set(owners[0].info.name, [...(given.get(owners[0].info.name) ?? []), `${name}=${value}`]);
    else if (builtin[0]) append.push(`${builtin[0][0]}.${name}=${value}`);
    // What is built in may not tell its parameters: the kernel judges.
    else if (module !== undefined && !order.some(({ info }) => info.name === module))
      append.push(`${module}.${name}=${value}`);
    // Without KVM there is something worse to tell.
    else if (missing.length === 0)
      throw new Error(`no module has a parameter "${written}"; ${knownParameters(order.map(({ info }) => info))}`);
  }
  return {
    modules: order.map(({ info, bytes }) => ({
      file: `${info.name}.ko`,
      bytes,
      parameters: (given.get(info.name) ?? []).join(' '),
    })),
    append,
    missing,
  };
}

function knownParameters(modules: readonly ModuleInfo[]): string {
  const lists = modules.flatMap(({ name, parameters }) =>
    name.startsWith('kvm') && parameters.length > 0 ? [`${name} has ${parameters.join(', ')}`] : [],
  );
  return lists.length > 0 ? lists.join('; ') : 'none of those that are loaded has any';
}
