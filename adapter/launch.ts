/** What a launch configuration says, checked. The schema in package.json describes the same attributes. */
export interface LaunchArguments {
  /** Path of a `.mmu` file. */
  readonly program: string;
  readonly stopOnEntry: boolean;
  /** Stops once more when everything has ended, instead of ending the session. */
  readonly stopAtEnd: boolean;
  /** Log entries kept to go back: each takes about 50 bytes. */
  readonly history: number;
  /** Run without stopping at anything. */
  readonly noDebug: boolean;
  /** Policies by name, over those of the scenario. */
  readonly policies: Readonly<Record<string, string>>;
}

export const DEFAULT_HISTORY = 1 << 20;
const MAX_HISTORY = 1 << 26;
const KNOWN = ['program', 'target', 'stopOnEntry', 'stopAtEnd', 'history', 'policies'];
/** Attributes that VS Code itself puts into every configuration. */
const VSCODE_OWN = [
  'type',
  'name',
  'request',
  'noDebug',
  'preLaunchTask',
  'postDebugTask',
  'internalConsoleOptions',
  'presentation',
  'debugServer',
  'serverReadyAction',
  'suppressMultipleSessionWarning',
  'linux',
  'osx',
  'windows',
];

function shown(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}

/** Checks the arguments of a launch request. @returns what is wrong, naming attribute, value and what would do. */
export function parseLaunch(raw: unknown): LaunchArguments | { readonly error: string } {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw))
    return { error: `the launch configuration must be an object, not ${shown(raw)}` };
  const given: Record<string, unknown> = { ...raw };
  for (const name of Object.keys(given)) {
    if (!KNOWN.includes(name) && !VSCODE_OWN.includes(name) && !name.startsWith('__'))
      return {
        error: `unknown launch attribute "${name}"; there are ${KNOWN.map((known) => `"${known}"`).join(', ')}`,
      };
  }
  const {
    program,
    target = 'emulator',
    stopOnEntry = false,
    stopAtEnd = false,
    history = DEFAULT_HISTORY,
    policies = {},
  } = given;
  if (typeof program !== 'string' || program === '')
    return { error: `"program" must be the path of a .mmu file, not ${shown(program)}` };
  if (target !== 'emulator')
    return { error: `"target" must be "emulator", not ${shown(target)}: no other target exists yet` };
  if (typeof stopOnEntry !== 'boolean')
    return { error: `"stopOnEntry" must be true or false, not ${shown(stopOnEntry)}` };
  if (typeof stopAtEnd !== 'boolean') return { error: `"stopAtEnd" must be true or false, not ${shown(stopAtEnd)}` };
  if (typeof history !== 'number' || !Number.isInteger(history) || history < 65536 || history > MAX_HISTORY)
    return {
      error: `"history" must be a whole number of log entries from 65536 to ${MAX_HISTORY}, not ${shown(history)}`,
    };
  if (!isPolicies(policies))
    return {
      error: `"policies" must be an object of names and values, such as {"page-split": "lazy"}, not ${shown(policies)}`,
    };
  return { policies, program, stopOnEntry, stopAtEnd, history, noDebug: given.noDebug === true };
}

function isPolicies(value: unknown): value is Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.values(value).every((chosen) => typeof chosen === 'string');
}
