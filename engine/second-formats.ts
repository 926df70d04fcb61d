import { Format } from './formats/compile.ts';
import { EPT, EPT_5, nestedEpt } from './formats/ept.ts';
import type { Feature } from './formats/format.ts';
import { NPT, NPT_5 } from './formats/npt.ts';
import { SHADOW, SHADOW_5, SHADOW_PAE } from './formats/shadow.ts';
import type { MachineConfig } from './program.ts';

/** How the tables that KVM gives the processor are read: EPT, NPT or shadow tables, by the level of their root. */
export class SecondFormats {
  /** Of the machine's own levels. */
  readonly main: Format;
  /** Of the tables behind `pae_root`; only shadow tables have them. */
  readonly pae: Format | undefined;
  /** Of the processor, where EPTP12 has it keep no accessed and dirty bits: by level, of EPT alone. */
  readonly withoutAccessedDirty: Readonly<Record<number, Format>>;
  readonly #byLevel: Readonly<Record<number, Format>>;

  constructor({ maxPhyAddr, features, second, secondLevels }: MachineConfig) {
    const hostFeatures = new Set<Feature>([...features, 'nx']);
    if (second === 'npt') hostFeatures.add('amd');
    const five = secondLevels === 5;
    const spec = { ept: five ? EPT_5 : EPT, npt: five ? NPT_5 : NPT, shadow: SHADOW }[second];
    const options = { maxPhyAddr, features: hostFeatures };
    this.main = new Format(spec, options);
    const specs = {
      ept: { 4: EPT, 5: EPT_5 },
      npt: { 4: NPT, 5: NPT_5 },
      shadow: { 3: SHADOW_PAE, 4: SHADOW, 5: SHADOW_5 },
    }[second];
    this.#byLevel = Object.fromEntries(
      Object.entries(specs).map(([level, each]) => [level, each === spec ? this.main : new Format(each, options)]),
    );
    this.pae = this.#byLevel[3];
    this.withoutAccessedDirty =
      second === 'ept'
        ? { 4: new Format(nestedEpt(EPT, false), options), 5: new Format(nestedEpt(EPT_5, false), options) }
        : {};
  }

  /** Of tables whose root is of a level; where there are none such, of the shadow tables behind `pae_root`, or of the machine's own. */
  ofRoot(level: number): Format {
    return this.#byLevel[level] ?? this.pae ?? this.main;
  }
}
