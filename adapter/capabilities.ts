import type { DebugProtocol } from '@vscode/debugprotocol';
import { announcedFilters } from './kvm/filters.ts';
import type { Target } from './targets/target.ts';

/** What the adapter can do only where vCPUs run real code. */
const OF_GUESTS = {
  supportsDisassembleRequest: true,
  supportsSteppingGranularity: true,
  supportsInstructionBreakpoints: true,
  supportsFunctionBreakpoints: true,
};

/** What a client hears before it says what to launch. @param onKvm what real machine the session will be of, where it is known */
export function firstCapabilities(onKvm: Parameters<typeof announcedFilters>[0]): DebugProtocol.Capabilities {
  return {
    supportsConfigurationDoneRequest: true,
    supportsConditionalBreakpoints: true,
    supportsHitConditionalBreakpoints: true,
    supportsLogPoints: true,
    supportsEvaluateForHovers: true,
    supportsClipboardContext: true,
    supportsExceptionFilterOptions: true,
    supportsExceptionInfoRequest: true,
    supportsSetVariable: true,
    supportsReadMemoryRequest: true,
    supportsWriteMemoryRequest: true,
    supportsRestartRequest: true,
    supportsTerminateRequest: true,
    supportsLoadedSourcesRequest: true,
    supportsBreakpointLocationsRequest: true,
    supportsDataBreakpoints: true,
    supportsCompletionsRequest: false,
    exceptionBreakpointFilters: announcedFilters(onKvm),
  };
}

/** What a target's own are besides, once there is one. */
export function targetCapabilities({ capabilities, guest }: Target): DebugProtocol.Capabilities {
  const filters = announcedFilters(guest?.recorded ? 'recording' : 'guest');
  const ofGuests = { ...(guest?.recorded ? {} : OF_GUESTS), exceptionBreakpointFilters: filters };
  return { supportsStepBack: capabilities.stepBack, ...(guest ? ofGuests : {}) };
}
