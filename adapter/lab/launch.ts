/** A machine in software emulation in which a kernel of one's choice has KVM. */
export interface LabLaunch {
  /** A kernel image, a Debian package, a kernel's source tree that was built, or a folder with `boot` and `lib/modules`. */
  readonly kernel: string;
  /** Folders in which modules are looked for first, and modules to be taken instead of the kernel's own. */
  readonly modules: readonly string[];
  /** Parameters of modules: `npt`, or `kvm.nx_huge_pages` where two have one of that name. */
  readonly params: Readonly<Record<string, string>>;
}

const EXAMPLE = '{"kernel": "linux-image.deb", "params": {"npt": 0}}';

/** Checks the attribute `lab`. @returns what is wrong, naming value and what would do */
export function parseLab(given: unknown): LabLaunch | { readonly error: string } {
  const shown = (value: unknown): string => JSON.stringify(value) ?? String(value);
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    return { error: `"lab" must be an object such as ${EXAMPLE}, not ${shown(given)}` };
  const unknown = Object.keys(given).find((name) => !['kernel', 'modules', 'params'].includes(name));
  if (unknown !== undefined) return { error: `"lab" has no "${unknown}"; there are "kernel", "modules" and "params"` };
  const { kernel, modules = [], params = {} } = given as Readonly<Record<string, unknown>>;
  if (typeof kernel !== 'string' || kernel === '')
    return {
      error: `"lab": "kernel" must be the path of a kernel image, a Debian package or a kernel tree, not ${shown(kernel)}`,
    };
  const folders = typeof modules === 'string' ? [modules] : modules;
  if (!Array.isArray(folders) || !folders.every((each) => typeof each === 'string' && each !== ''))
    return { error: `"lab": "modules" must be a path, or a list of paths, not ${shown(modules)}` };
  if (typeof params !== 'object' || params === null || Array.isArray(params))
    return { error: `"lab": "params" must be an object such as {"npt": 0}, not ${shown(params)}` };
  const values: Record<string, string> = {};
  for (const [name, value] of Object.entries(params)) {
    if (!['string', 'number', 'boolean'].includes(typeof value) || /[\s"]/.test(`${value}`))
      return { error: `"lab": parameter "${name}" must be a number, a boolean or a word, not ${shown(value)}` };
    values[name] = typeof value === 'boolean' ? (value ? '1' : '0') : `${value}`;
  }
  return { kernel, modules: folders, params: values };
}
