// What the page remembers: language and theme in this browser, keys in this tab only.
const PREFIX = "polyclinic.";

function guarded(use) {
  try {
    return use();
  } catch {
    return null; // the browser blocks storage: the page works, and forgets
  }
}

export const remembered = (name) => guarded(() => localStorage.getItem(PREFIX + name));
export const remember = (name, value) => guarded(() => localStorage.setItem(PREFIX + name, value));

const keys = new Map(); // also here, for browsers that block storage

export function getKey(name) {
  return keys.get(name) ?? guarded(() => sessionStorage.getItem(PREFIX + name)) ?? "";
}

export function setKey(name, value) {
  keys.set(name, value);
  guarded(() =>
    value ? sessionStorage.setItem(PREFIX + name, value) : sessionStorage.removeItem(PREFIX + name),
  );
}
