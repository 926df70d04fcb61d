// Checks the house's doors: which folder may import which (docs/architecture.md). Prints every import that goes through a wall.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Folders of the house that each folder may import, besides itself; and whether it may use Node, VS Code or packages. */
const doors = {
  engine: { folders: [], packages: [] },
  scenario: {
    folders: ['engine'],
    packages: [
      'langium',
      'chevrotain',
      'vscode-languageserver',
      'vscode-languageserver-types',
      'vscode-languageserver-protocol',
    ],
  },
  adapter: {
    folders: ['engine', 'scenario'],
    packages: ['@vscode/debugadapter', '@vscode/debugprotocol', 'fast-xml-parser', 'iced-x86'],
  },
  // Types and decoding only.
  webview: { folders: ['engine'], packages: [/^d3/] },
  // Entry decoding without a session, and the language server's entry point.
  extension: { folders: ['engine', 'scenario'], packages: ['vscode', /^vscode-language/, 'langium', /^node:/] },
};
/** Entry points and targets that may import Node. */
const nodeFiles = [
  'adapter/main.ts',
  'adapter/cli.ts',
  'adapter/commands/scenario-file.ts',
  'adapter/commands/output.ts',
  'adapter/commands/usage.ts',
  'adapter/image/file.ts',
  'adapter/trace/file.ts',
  'adapter/trace/spool.ts',
  'adapter/rsp/node-stream.ts',
  'adapter/kvm/local-ram.ts',
  'adapter/kvm/open.ts',
  'adapter/kvm/built.ts',
  'adapter/kvm/place.ts',
  'adapter/lab/boot.ts',
  'adapter/lab/kernel.ts',
  'adapter/scenario-kvm/open.ts',
  'adapter/commands/conform.ts',
  'adapter/commands/record.ts',
];
const pathRules = [
  // Decoding and messages are all that extension and webviews take from the engine.
  {
    from: /^extension\/(?!server\.ts)/,
    to: /^engine\/(?!formats\/|memory\/words|tdp\/spte|queries\/(answers|protocol))/,
  },
  { from: /^extension\/(?!server\.ts)/, to: /^scenario\// },
  { from: /^webview\//, to: /^engine\/(?!formats\/|memory\/words|queries\/(answers|protocol))/ },
  // The engine's lower rooms know nothing of the upper ones.
  { from: /^engine\/memory\//, to: /^engine\/(?!memory\/)/ },
  { from: /^engine\/formats\//, to: /^engine\/(?!formats\/|memory\/)/ },
  { from: /^engine\/pgtable\//, to: /^engine\/(?!pgtable\/|formats\/|memory\/)/ },
];

function sources(folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) return entry.name === 'generated' ? [] : sources(path);
    return /\.ts$/.test(entry.name) ? [path] : [];
  });
}

const matches = (list, name) =>
  list.some((rule) => (typeof rule === 'string' ? rule === name || name.startsWith(`${rule}/`) : rule.test(name)));
const problems = [];
let count = 0;
for (const [folder, door] of Object.entries(doors)) {
  for (const file of sources(folder)) {
    const test = file.endsWith('.test.ts');
    const text = readFileSync(join(root, file), 'utf8');
    for (const [, name] of text.matchAll(
      /^(?:import\s+(?:[^'";]*?\sfrom\s+)?|export\s+(?:type\s+)?(?:\*|\{[^}]*\})[^'";]*?\sfrom\s+)['"]([^'"]+)['"]/gm,
    )) {
      count++;
      if (name.startsWith('.')) {
        const target = relative(root, join(root, dirname(file), name));
        const to = target.split('/')[0];
        if (to !== folder && !door.folders.includes(to))
          problems.push(`${file}: ${folder}/ may not import ${to}/ (${name})`);
        const rule = pathRules.find((candidate) => candidate.from.test(file) && candidate.to.test(target));
        if (rule && !test) problems.push(`${file}: may not import ${target}`);
      } else if (!test && !matches(door.packages, name) && !(name.startsWith('node:') && nodeFiles.includes(file))) {
        problems.push(`${file}: ${folder}/ may not import the package ${name}`);
      }
    }
  }
}
for (const problem of problems) console.error(problem);
console.log(`doors: ${count} imports checked, ${problems.length} through a wall`);
process.exit(problems.length > 0 ? 1 : 0);
