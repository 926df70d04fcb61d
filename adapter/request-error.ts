/** A session could not do what was asked; the message is for people. */
export class RequestError extends Error {}
