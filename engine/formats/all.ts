import { type Arm64Shape, arm64Levels, arm64Stage1, arm64Stage2, type Granule } from './arm64.ts';
import { EPT, EPT_5 } from './ept.ts';
import type { FormatSpec } from './format.ts';
import { NPT, NPT_5 } from './npt.ts';
import { PAE } from './pae.ts';
import { SV39, SV39X4, SV48, SV48X4, SV57, SV57X4 } from './riscv.ts';
import { SHADOW, SHADOW_5, SHADOW_PAE } from './shadow.ts';
import { X86_32 } from './x86-32.ts';
import { X86_64, X86_64_5 } from './x86-64.ts';

const GRANULES: readonly (readonly [string, Granule])[] = [
  ['4k', 12],
  ['16k', 14],
  ['64k', 16],
];

/** arm64's, one for each granule and descriptor width, as wide as they get. */
function arm64Formats(): [string, FormatSpec][] {
  return GRANULES.flatMap(([size, granule]) =>
    [false, true].flatMap((wide): [string, FormatSpec][] => {
      const inputBits = wide ? 52 : 48;
      const shape: Arm64Shape = { granule, inputBits, levels: arm64Levels(granule, inputBits), wide };
      const suffix = `${size}${wide ? '-52' : ''}`;
      return [
        [`arm64-s1-${suffix}`, arm64Stage1(shape, 2)],
        [`arm64-el2-${suffix}`, arm64Stage1(shape, 1)],
        [`arm64-s2-${suffix}`, arm64Stage2(shape)],
      ];
    }),
  );
}

/** Every format by the name that people give. */
export const FORMATS: ReadonlyMap<string, FormatSpec> = new Map<string, FormatSpec>([
  ...[
    ...[X86_64, X86_64_5, PAE, X86_32, EPT, EPT_5, NPT, NPT_5, SHADOW, SHADOW_5, SHADOW_PAE],
    ...[SV39, SV48, SV57, SV39X4, SV48X4, SV57X4],
  ].map((spec): [string, FormatSpec] => [spec.name, spec]),
  ...arm64Formats(),
]);
