/** A recording that cannot be used, or a part of it; the message names what it is and where, by offset or line. */
export class TraceError extends Error {}
