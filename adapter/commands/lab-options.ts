import { type LabLaunch, parseLab } from '../lab/launch.ts';
import type { LabPrinter } from '../lab/printer.ts';
import { UsageError } from './usage.ts';

/** What says of a command which labs it runs in. */
export const LAB_OPTIONS = {
  kernel: { type: 'string', multiple: true },
  modules: { type: 'string', multiple: true },
  param: { type: 'string', multiple: true },
  console: { type: 'boolean' },
} as const;

export function labsOf({
  kernel = [],
  modules = [],
  param = [],
}: {
  readonly [name in 'kernel' | 'modules' | 'param']?: string[] | undefined;
}): LabLaunch[] {
  if (kernel.length === 0) throw new UsageError('--kernel is missing: an image, a Debian package or a kernel tree');
  const params: Record<string, string> = {};
  for (const each of param) {
    const equals = each.indexOf('=');
    if (equals < 1) throw new UsageError(`--param ${each}: NAME=VALUE is wanted, such as npt=0`);
    params[each.slice(0, equals)] = each.slice(equals + 1);
  }
  return kernel.map((path) => {
    const parsed = parseLab({ kernel: path, modules, params });
    if ('error' in parsed) throw new UsageError(parsed.error);
    return parsed;
  });
}

/** Words about a lab, on standard error: its standard output may be a helper's. */
export function printerOf(withConsole: boolean, name = 'lab'): LabPrinter {
  const say = (words: string): void => void process.stderr.write(`${name}: ${words}\n`);
  return {
    progress: say,
    problem: say,
    labConsole: (text) => {
      if (withConsole) process.stderr.write(text);
    },
  };
}
