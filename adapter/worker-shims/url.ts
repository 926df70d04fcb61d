// What @vscode/debugadapter takes from Node's `url` module, for browsers.
const { URL: BrowserURL } = globalThis;

export { BrowserURL as URL };
