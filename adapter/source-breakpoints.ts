import type { DebugProtocol } from '@vscode/debugprotocol';
import { listing } from '../engine/queries/listing.ts';
import { breakableLines, listingName } from './sources.ts';
import type { Target } from './targets/target.ts';
import type { WantedBreakpoints } from './wanted-breakpoints.ts';

/** Sets the breakpoints of a source: of guest code, of a function's listing, or of the scenario that a session debugs. */
export async function setSourceBreakpoints(
  target: Target,
  breakpoints: WantedBreakpoints,
  scenario: string,
  source: DebugProtocol.Source,
  wanted: readonly DebugProtocol.SourceBreakpoint[],
): Promise<DebugProtocol.Breakpoint[]> {
  const { guest, machine, capabilities } = target;
  if (guest) return guest.setLines(source.path ?? '', wanted);
  const fn = listingName(source);
  if (fn !== undefined) return breakpoints.setSteps(fn, wanted);
  if (!capabilities.run) return wanted.map(() => ({ verified: false, message: capabilities.why.run! }));
  if (source.path !== scenario)
    return wanted.map(() => ({ verified: false, message: `this session debugs ${scenario}` }));
  return breakpoints.setLines(breakableLines(machine), wanted);
}

/** Where in a stretch of a source breakpoints can be. */
export function breakpointLocations(
  { guest, machine }: Target,
  { source, line: first, endLine = first }: DebugProtocol.BreakpointLocationsArguments,
): DebugProtocol.BreakpointLocation[] {
  const fn = listingName(source);
  const lines = guest
    ? guest.breakableLines(source.path ?? '')
    : fn === undefined
      ? breakableLines(machine)
      : listing(fn).stepLines;
  return lines.filter((line) => line >= first && line <= endLine).map((line) => ({ line }));
}
