import { Lab } from '../lab/boot.ts';
import type { LabLaunch } from '../lab/launch.ts';
import type { LabPrinter } from '../lab/printer.ts';
import { conformAt, readConform } from './conform.ts';
import { LAB_OPTIONS, labsOf, printerOf } from './lab-options.ts';
import { fitsKvm, type RanOnKvm, runAndTell, runOnKvm } from './run-kvm.ts';
import { readScenario, stepLimit } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

/** Exit status when a lab cannot be had. */
const CANNOT_RUN = 3;

const OPTIONS = {
  ...LAB_OPTIONS,
  json: { type: 'boolean' },
  'max-steps': { type: 'string' },
  seed: { type: 'string' },
  cases: { type: 'string' },
  case: { type: 'string' },
  paging: { type: 'string' },
} as const;

/** `kvm-mmu lab run|conform|helper`: on a kernel of one's choice, in software emulation. The exit status. */
export async function lab(args: string[]): Promise<number> {
  const [verb, ...rest] = args;
  const separator = rest.indexOf('--');
  const behind = separator < 0 ? [] : rest.slice(separator + 1);
  const { values, positionals } = readOptions({
    args: separator < 0 ? rest : rest.slice(0, separator),
    allowPositionals: true,
    options: OPTIONS,
  });
  const labs = labsOf(values);
  if (verb !== 'helper' && behind.length > 0) throw new UsageError('what follows -- is for lab helper');
  const limit = verb === 'run' ? stepLimit(values['max-steps']) : 0;
  if (verb !== 'run' && labs.length > 1) throw new UsageError(`lab ${verb} takes one --kernel`);
  if (verb !== 'run' && positionals.length > 0) throw new UsageError(`lab ${verb} takes no ${positionals[0]}`);
  const printer = printerOf(values.console === true);
  switch (verb) {
    case 'run': {
      const [path] = positionals;
      if (path === undefined || positionals.length > 1) throw new UsageError('lab run takes one file');
      const program = readScenario(path);
      if (!program) return 2;
      const wanted = { path, program, limit };
      if (labs.length > 1) return sideBySide(wanted, labs, values.console === true, values.json === true);
      return withLab(labs[0]!, printer, (place) => runAndTell({ ...wanted, json: values.json === true }, place));
    }
    case 'conform':
      return withLab(withoutNpt(labs[0]!), printer, (place) =>
        conformAt(place, readConform(values), values.json === true),
      );
    case 'helper':
      return withLab(labs[0]!, printer, (place) => connectHelper(place, behind));
    default:
      throw new UsageError(`lab takes run, conform or helper, not ${verb ?? 'nothing'}`);
  }
}

/**
 * With nested page tables the guest's addresses are translated by the processor, which in a lab is QEMU's: shadow paging makes
 * it KVM's own walk.
 */
function withoutNpt(launch: LabLaunch): LabLaunch {
  const given = Object.keys(launch.params).some((name) => /^(kvm[-_]amd\.)?npt$/.test(name));
  return given ? launch : { ...launch, params: { ...launch.params, 'kvm_amd.npt': '0' } };
}

async function withLab(launch: LabLaunch, printer: LabPrinter, work: (place: Lab) => Promise<number>): Promise<number> {
  let place: Lab;
  try {
    place = await Lab.boot(launch, printer);
  } catch (error) {
    console.error(`kvm-mmu: ${(error as Error).message}`);
    return CANNOT_RUN;
  }
  const end = (): void => process.exit(130);
  process.once('SIGINT', end);
  process.once('SIGTERM', end);
  try {
    return await work(place);
  } finally {
    process.off('SIGINT', end);
    process.off('SIGTERM', end);
    place.close();
  }
}

/** How long a helper has to end by itself when its input has ended: it answers first what it was asked. */
const ENDING_MS = 5000;

/** The helper's standard input and output become ours. Ends with the helper, which ends when our input does. */
async function connectHelper(place: Lab, args: readonly string[]): Promise<number> {
  const at = args.indexOf('--image');
  const written = at < 0 ? undefined : args[at + 1];
  const others = at < 0 ? args : [...args.slice(0, at), ...args.slice(at + 2)];
  const [, path, address] = /^(.*?)(?:@(\w+))?$/.exec(written ?? '') ?? [];
  const image = written === undefined ? undefined : { path: path!, ...(address === undefined ? {} : { at: address }) };
  const stream = await place.start(others, image);
  const { stdin } = process;
  return new Promise((resolve) => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    stream.onData((chunk) => void process.stdout.write(chunk));
    stream.onClose((reason) => {
      clearTimeout(timer);
      // Whoever still reads would keep this process.
      stdin.removeAllListeners();
      stdin.destroy();
      const good = reason === 'exit status 0';
      if (!good) console.error(`the helper has ended: ${reason}`);
      resolve(good ? 0 : 1);
    });
    stdin.on('data', (chunk: Uint8Array) => stream.write(chunk));
    stdin.on('end', () => {
      stream.end();
      timer = setTimeout(() => stream.close(), ENDING_MS);
    });
  });
}

/** One scenario in several labs at once, and what they differ in. */
async function sideBySide(
  wanted: Parameters<typeof runOnKvm>[0],
  labs: readonly LabLaunch[],
  withConsole: boolean,
  json: boolean,
): Promise<number> {
  if (!fitsKvm(wanted.path, wanted.program)) return 2;
  const results = await Promise.all(
    labs.map(async (launch, index): Promise<{ name: string; ran?: RanOnKvm; error?: string }> => {
      let name = launch.kernel;
      try {
        const place = await Lab.boot(launch, printerOf(withConsole, `lab ${index + 1}`));
        name = place.release;
        return { name, ran: await runOnKvm(wanted, place) };
      } catch (error) {
        return { name, error: (error as Error).message };
      }
    }),
  );
  if (json) console.log(JSON.stringify(results.map(({ name, ran, error }) => ({ kernel: name, ...ran, error }))));
  else console.log(comparison(results).join('\n'));
  for (const { name, error } of results) if (error !== undefined) console.error(`${name}: ${error}`);
  if (results.some(({ error }) => error !== undefined)) return CANNOT_RUN;
  return results.every(({ ran }) => ran?.ok) ? 0 : 1;
}

function comparison(results: readonly { name: string; ran?: RanOnKvm }[]): string[] {
  const names = [...new Set(results.flatMap(({ ran }) => Object.keys(ran?.counters ?? {})))];
  const rows: (readonly [string, readonly string[]])[] = [
    ['', results.map(({ name }) => name)],
    ['outcome', results.map(({ ran }) => (ran === undefined ? 'did not run' : ran.ok ? 'ok' : 'failed'))],
    ['steps', results.map(({ ran }) => `${ran?.steps ?? '–'}`)],
    ...names
      .map((name) => [name, results.map(({ ran }) => `${ran?.counters[name] ?? '–'}`)] as const)
      .filter(([, values]) => values.some((value) => value !== '0')),
  ];
  const widths = results.map((_, column) => Math.max(...rows.map(([, values]) => values[column]!.length)));
  const first = Math.max(...rows.map(([name]) => name.length));
  const lines = rows.map(([name, values]) => {
    const differ = name !== '' && new Set(values).size > 1;
    const cells = values.map((value, column) => value.padStart(widths[column]!)).join('  ');
    return `${name.padEnd(first)}  ${cells}${differ ? '  ← differ' : ''}`;
  });
  for (const { name, ran } of results)
    for (const { line, text, actual } of ran?.failures ?? []) lines.push(`${name}: line ${line}: ${text}: ${actual}`);
  return lines;
}
