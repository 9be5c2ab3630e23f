"""Sentences around a question that speak for no specialty: written by us for the evaluation only.

Training pads its texts with other sentences (router_augmentation.py); a test keeps the two apart.

The same question as it may arrive: eight changes that leave its meaning alone.

Accents, punctuation and slips change the way training changes them (router_augmentation.py), at
other places; the courtesies and the page around a question are other sentences than training's
(router_neutral_text.py).
"""

import random
import unicodedata
from collections.abc import Callable

from scripts.router.augmentation import with_typos, without_accents, without_punctuation

POLITE = {
    "en": (
        ("Good evening! May I ask you something?", "Have a lovely day."),
        ("Dear team, thanks for offering this chat.", "I appreciate any pointer you can give."),
        ("Hello again, hope the week treats you kindly.", "Best wishes, and no rush at all."),
        ("Hiya :)", "Cheers!!"),
        ("Good day to you,", "With my warmest thanks in anticipation of your reply."),
        ("Would you be so kind as to look at this?", "That is everything, thank you so much."),
    ),
    "fr": (
        ("Bonsoir ! Puis-je vous demander quelque chose ?", "Très belle journée à vous."),
        ("Chère équipe, merci d'avoir ouvert ce tchat.", "Toute piste sera la bienvenue."),
        ("Rebonjour, bonne semaine à tous.", "Rien ne presse, amicalement."),
        ("Salut :)", "Merci bcp !!"),
        ("Madame, Monsieur,", "Veuillez agréer mes salutations les meilleures."),
        ("Auriez-vous la gentillesse de regarder ceci ?", "C'est tout, un grand merci."),
    ),
}
NEUTRAL = {
    "en": (
        "Yesterday the post arrived late because of the roadworks on our street.",
        "My cousin is visiting us and she has brought a box of old photographs.",
        "We spent most of the afternoon sorting them by year on the kitchen table.",
        "The train to the city now leaves ten minutes earlier than it used to.",
        "I am borrowing a laptop from a colleague, so the keyboard feels strange.",
        "Our landlord has promised to repaint the hallway before the autumn.",
        "There is a small market on Thursdays where we buy flowers and bread.",
        "The children next door are learning a song for the end of term.",
        "I wrote down a few notes beforehand so that I would not lose the thread.",
        "The library has extended its opening hours, which suits me well.",
        "Last Sunday we walked along the canal and counted the boats.",
        "My brother keeps asking when I will finally finish the bookshelf.",
        "It rained all morning, then the sun came out around lunchtime.",
        "A friend lent me a novel that I have not been able to put down.",
        "The bakery on the corner has changed hands twice this year.",
        "We are planning a trip to the coast if the tickets are not too dear.",
        "I used to live in a much larger town and I do not miss the traffic.",
        "The clock in the living room runs five minutes fast and nobody minds.",
        "Somebody left an umbrella on the bus and I handed it to the driver.",
        "Our street will have a party in June, with music and long tables.",
        "I prefer writing to telephoning since it gives me time to think.",
        "The neighbours have planted a cherry tree beside the fence.",
        "My niece passed her driving test on the second attempt.",
        "There was a documentary about lighthouses that I rather enjoyed.",
        "The new office has big windows and a view of the river.",
        "We finally repaired the garden gate, which had been creaking for months.",
        "I signed up for an evening class in pottery with two friends.",
        "The printer at work jams whenever somebody is in a hurry.",
        "A parcel came for the wrong address and we took it across the road.",
        "Please forgive the long introduction, I tend to wander off the point.",
        "The radio announced that the bridge will stay closed until Monday.",
        "My grandfather's old bicycle still stands in the shed under a blanket.",
        "I shall be travelling for two days and will read your reply in the evening.",
        "The weather forecast for the weekend keeps changing every few hours.",
    ),
    "fr": (
        "Hier le courrier est arrivé tard à cause des travaux dans notre rue.",
        "Ma cousine est chez nous et elle a apporté un carton de vieilles photos.",
        "Nous avons passé l'après-midi à les classer par année sur la grande table.",
        "Le train pour la ville part maintenant dix minutes plus tôt qu'avant.",
        "Un collègue me prête son ordinateur et le clavier me paraît bizarre.",
        "Le propriétaire a promis de repeindre le couloir avant l'automne.",
        "Le jeudi il y a un petit marché où nous achetons des fleurs et du pain.",
        "Les enfants d'à côté apprennent une chanson pour la fête de l'école.",
        "J'ai pris quelques notes avant d'écrire pour ne pas perdre le fil.",
        "La bibliothèque ouvre plus longtemps, ce qui m'arrange bien.",
        "Dimanche dernier nous avons longé le canal en comptant les bateaux.",
        "Mon frère demande sans cesse quand je finirai enfin l'étagère.",
        "Il a plu toute la matinée, puis le soleil est revenu vers midi.",
        "Une amie m'a prêté un roman que je n'arrive plus à lâcher.",
        "La boulangerie de la place a changé deux fois de patron cette année.",
        "Nous pensons partir sur la côte si les billets ne sont pas trop chers.",
        "J'habitais une ville bien plus grande et les embouteillages ne me manquent pas.",
        "L'horloge du salon avance de cinq minutes et cela ne dérange personne.",
        "Quelqu'un avait oublié un parapluie dans le car, je l'ai remis au chauffeur.",
        "Notre quartier fera une fête en juin, avec de la musique et de longues tables.",
        "J'aime mieux écrire que téléphoner, cela me laisse le temps de réfléchir.",
        "Les voisins ont planté un cerisier près de la clôture.",
        "Ma nièce a obtenu son permis de conduire à la deuxième tentative.",
        "Il y avait un documentaire sur les phares qui m'a bien plu.",
        "Le nouveau bureau a de grandes fenêtres et une vue sur la rivière.",
        "Nous avons enfin réparé le portail, qui grinçait depuis des mois.",
        "Je me suis inscrit à un cours de poterie le soir avec deux copains.",
        "L'imprimante du travail se bloque dès que quelqu'un est pressé.",
        "Un colis est arrivé à la mauvaise adresse, nous l'avons porté en face.",
        "Pardonnez cette longue introduction, j'ai tendance à m'égarer.",
        "La radio a annoncé que le pont restera fermé jusqu'à lundi.",
        "Le vieux vélo de mon grand-père est toujours dans la remise sous une bâche.",
        "Je serai en voyage deux jours et je lirai votre réponse le soir.",
        "La météo du week-end change toutes les deux heures.",
    ),
}


PAGE_CHARS = 2000  # of neutral sentences around a question
Perturbation = Callable[[str, str, random.Random], str]  # (text, language, generator)


def upper_case(text: str) -> str:
    return text.upper()


def polite(text: str, lang: str, generator: random.Random) -> str:
    """Between the first and last words of a polite chat."""
    before, after = generator.choice(POLITE[_written(lang)])
    return f"{before} {text} {after}"


def within_a_page(text: str, lang: str, generator: random.Random) -> str:
    """Somewhere among about PAGE_CHARS of sentences that say nothing of any specialty."""
    sentences = list(NEUTRAL[_written(lang)])
    generator.shuffle(sentences)
    kept: list[str] = []
    while sum(len(sentence) + 1 for sentence in kept) < PAGE_CHARS and sentences:
        kept.append(sentences.pop())
    kept.insert(generator.randint(0, len(kept)), text)
    return " ".join(kept)


def as_cp1252(text: str) -> str:
    """UTF-8 that was read as Windows-1252. Bytes that it leaves undefined pass as C1 controls."""
    return "".join(_cp1252(byte) for byte in text.encode("utf-8"))


def _cp1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


def decomposed(text: str) -> str:
    """Each accent a character of its own (NFD), as some systems write file names and forms."""
    return unicodedata.normalize("NFD", text)


def _written(lang: str) -> str:
    """A language that the neutral sentences are written in."""
    return lang if lang in NEUTRAL else "en"


PERTURBATIONS: dict[str, Perturbation] = {
    "no accents": lambda text, lang, generator: without_accents(text),
    "upper case": lambda text, lang, generator: upper_case(text),
    "typos (one slip in 25 letters)": lambda text, lang, generator: with_typos(text, generator),
    "punctuation removed": lambda text, lang, generator: without_punctuation(text),
    "wrapped in polite chat": polite,
    "within a page of text": within_a_page,
    "UTF-8 read as cp1252": lambda text, lang, generator: as_cp1252(text),
    "decomposed accents": lambda text, lang, generator: decomposed(text),
}


def perturbed(text: str, lang: str, id_: str, name: str, seed: int) -> str:
    """One question under one perturbation: the same for the same id and seed."""
    return PERTURBATIONS[name](text, lang, random.Random(f"{seed}/{name}/{id_}"))
