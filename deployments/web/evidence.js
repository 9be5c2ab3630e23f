// Where in the question the phrases stand that decided.

/** Text without case and accents, and for each of its characters the place it came from. */
function folded(text) {
  let plain = "";
  const origin = [];
  let position = 0;
  for (const character of text) {
    const bare = character.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
    for (const unit of bare) {
      for (let i = 0; i < unit.length; i += 1) origin.push(position);
      plain += unit;
    }
    position += character.length;
  }
  origin.push(position);
  return { plain, origin };
}

const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);

/** -> [[start, end], ...] in `question`, ordered, not overlapping; whole words only. */
export function places(question, phrases) {
  const { plain, origin } = folded(question);
  const found = [];
  for (const phrase of phrases) {
    const wanted = folded(phrase).plain.trim();
    if (!wanted) continue;
    for (let at = plain.indexOf(wanted); at >= 0; at = plain.indexOf(wanted, at + 1)) {
      const end = at + wanted.length;
      if (!isWord(plain[at - 1]) && !isWord(plain[end])) found.push([origin[at], origin[end]]);
    }
  }
  found.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  const merged = [];
  for (const [start, end] of found) {
    const last = merged.at(-1);
    if (last && start < last[1]) last[1] = Math.max(last[1], end);
    else merged.push([start, end]);
  }
  return merged;
}

/** The question as text nodes and <mark> elements. */
export function marked(question, phrases) {
  const nodes = [];
  let from = 0;
  for (const [start, end] of places(question, phrases)) {
    nodes.push(question.slice(from, start));
    const mark = document.createElement("mark");
    mark.textContent = question.slice(start, end);
    nodes.push(mark);
    from = end;
  }
  nodes.push(question.slice(from));
  return nodes;
}
