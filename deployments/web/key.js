// The reader's API key: asked for when the server wants one, kept in this tab.
import { byId } from "./dom.js";
import { getKey, setKey } from "./storage.js";

let afterwards = null; // what to do once a key was given

export function authorization(name = "key") {
  const key = getKey(name);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Opens the dialog; `then` runs when a key was entered. */
export function askForKey(then = null) {
  afterwards = then;
  byId("key").value = "";
  byId("key-dialog").showModal();
}

export function startKey() {
  const dialog = byId("key-dialog");
  const close = () => {
    afterwards = null;
    dialog.close();
  };
  byId("key-button").addEventListener("click", () => askForKey());
  byId("key-cancel").addEventListener("click", close);
  byId("key-forget").addEventListener("click", () => {
    setKey("key", "");
    close();
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (!key) {
      byId("key").focus();
      return;
    }
    setKey("key", key);
    const then = afterwards;
    close();
    then?.();
  });
}
