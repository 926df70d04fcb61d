import { readFile } from 'node:fs/promises';
import { openKvm } from './kvm/open.ts';
import { thisMachine } from './kvm/place.ts';
import { Lab } from './lab/boot.ts';
import { openScenario } from './scenario-kvm/open.ts';
import { KvmMmuSession } from './session.ts';
import { ImageTarget } from './targets/image.ts';
import { KvmScenarioTarget } from './targets/kvm-scenario.ts';
import { RecordingTarget } from './targets/recording.ts';
import { readRecordingFile } from './trace/file.ts';

// The adapter as a process of its own: the debug adapter protocol on standard input and output. `--kvm=guest`, `--kvm=scenario` and
// `--kvm=recording`: its session will be one of a machine under KVM.
const onKvm = (['guest', 'scenario', 'recording'] as const).find((kind) => process.argv.includes(`--kvm=${kind}`));
const session = new KvmMmuSession({
  async readText(path) {
    try {
      return await readFile(path, 'utf8');
    } catch (error) {
      throw new Error(
        `cannot read "program" ${path}: ${(error as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : (error as Error).message}`,
      );
    }
  },
  yieldToLoop: () => new Promise((resolve) => setImmediate(resolve)),
  openImage: (launch) => new ImageTarget(launch),
  openKvm,
  openTrace: ({ path, machine }, say) => new RecordingTarget(readRecordingFile(path), path, machine, say.print),
  openScenario: async (program, say, { lab, ...wanted }) => {
    const place = lab ? await Lab.boot(lab, say) : thisMachine();
    return new KvmScenarioTarget(await openScenario(program, say.print, place, wanted));
  },
  ...(onKvm ? { onKvm } : {}),
});
process.on('SIGTERM', () => session.shutdown());
session.start(process.stdin, process.stdout);
