"""Training texts as people write them: terms put into questions, slips, courtesies, long letters.

Everything here is written by us. The French templates are others than those of the templated
questions that the router is evaluated on.
"""

import random
import re
import unicodedata
from dataclasses import dataclass

TEMPLATES = {
    "en": (
        "{}",
        "{}",
        "what is {}",
        "What is {}?",
        "What are {}?",
        "How is {} treated?",
        "treatment for {}",
        "{} symptoms",
        "{} treatment",
        "{} in a child",
        "My mother has {}.",
        "I was told that I have {}. What happens next?",
        "I have {}, should I worry?",
        "Is {} hereditary?",
        "What causes {}?",
        "Which tests are done for {}?",
        "Can {} be cured?",
        "living with {}",
        "A patient with {}: which work-up do you suggest?",
        "Diagnosis: {}.",
        "We report a case of {}.",
        "outcomes of patients with {}",
    ),
    "fr": (
        "{}",
        "{}",
        "qu'est-ce que {}",
        "C'est quoi {} ?",
        "traitement {}",
        "symptômes {}",
        "On m'a diagnostiqué ceci : {}. Que dois-je faire ?",
        "J'ai {}, dois-je m'inquiéter ?",
        "Mon bébé a {}",
        "{} : que faire ?",
        "{} chez l'adulte",
        "Ma mère souffre de {}.",
        "Est-ce que {} se soigne ?",
        "vivre avec {}",
        "Patient présentant {}, avis sur la conduite à tenir ?",
        "Antécédents : {}.",
        "Peut-on guérir de {} ?",
    ),
}
COURTESIES = {
    "en": (
        ("Hello, ", ""),
        ("", " Thank you!"),
        ("Hi doctor, ", " Thanks in advance."),
        ("Good morning, could you tell me: ", ""),
        ("Hi there! I hope you are well. ", " Kind regards"),
        ("Sorry to bother you, I have a question. ", " Many thanks for your help."),
        ("Please help: ", ""),
        ("Hey, quick question: ", " thx"),
    ),
    "fr": (
        ("Bonjour, ", ""),
        ("", " Merci !"),
        ("Bonjour docteur, ", " Merci d'avance."),
        ("Bonsoir, pouvez-vous me dire : ", ""),
        ("Bonjour, j'espère que vous allez bien. ", " Bien cordialement"),
        ("Excusez-moi de vous déranger, j'ai une question. ", " Merci beaucoup pour votre aide."),
        ("SVP aidez-moi : ", ""),
        ("Coucou, petite question : ", " mercii"),
    ),
}
# What letters hold besides the question: nothing here speaks for or against any specialty.
PADDING = {
    "en": (
        "I am writing to you because my sister recommended your service.",
        "I tried to phone this morning but the line was busy.",
        "We moved to this town last spring and do not know many people yet.",
        "I work in an office and I usually take the bus.",
        "My neighbour told me that you answer quickly.",
        "It has been a busy year with the new job and the house.",
        "My daughter helped me to type this message.",
        "I do not know whether this is the right place to ask.",
        "I would rather have an opinion before I decide anything.",
        "It all began some time ago, I do not remember the exact date.",
        "We were on holiday in the mountains and the weather was lovely.",
        "My husband says that I read too much on the internet.",
        "I have kept all the papers in a folder if you need them.",
        "I am sorry if my message is a bit long.",
        "My next appointment is only in three weeks.",
        "I was watching television with the family that evening.",
        "The chemist around the corner could not tell me more.",
        "I am usually someone who never complains.",
        "Since then I have been thinking about it every day.",
        "My friends all have a different opinion about it.",
        "I am retired and I like to read and to look after the garden.",
        "We had guests that weekend and I had cooked for ten people.",
        "I have never asked a question here before.",
        "Thank you for taking the time to read all this.",
        "The trains were late again, so I wrote most of this on the platform.",
        "We have two dogs and a cat, and the house is never quiet.",
        "On Saturday we went to the market and met half of the village.",
        "My brother lives abroad and only visits at Christmas.",
        "The weather has been strange lately, one day sun and the next day snow.",
        "I changed jobs in spring and now drive forty minutes each way.",
        "Our kitchen is being renovated, so everything is in boxes.",
        "My grandson set up this account for me.",
        "I read your last newsletter with interest.",
        "We celebrated my father's eightieth birthday last month.",
        "I usually go for a walk by the river after lunch.",
        "The children are back at school and the evenings are calmer.",
        "My colleague had a similar story, but hers ended differently.",
        "I am not very good with computers, so please excuse the mistakes.",
        "At the weekend I help out in a second-hand bookshop.",
        "We have been married for thirty years and still argue about the dishes.",
        "There was a strike, so the post arrived a week late.",
        "I wrote down everything in a notebook, page after page.",
        "Somebody told me to be patient and to wait a little.",
        "I will be away from the tenth to the twentieth.",
        "The flat upstairs is empty and we hope for nice neighbours.",
        "My niece studies law and always wants proof for everything.",
        "If you need my address or my date of birth, tell me.",
        "I hope that this is clear, I have never been good at explaining things.",
        "In the end we sold the old car and bought bicycles.",
        "It is nothing urgent, I think, but I would like to know.",
    ),
    "fr": (
        "Je vous écris parce que ma sœur m'a conseillé votre service.",
        "J'ai essayé d'appeler ce matin mais la ligne était occupée.",
        "Nous avons déménagé au printemps et nous ne connaissons pas encore grand monde.",
        "Je travaille dans un bureau et je prends le bus tous les jours.",
        "Ma voisine m'a dit que vous répondiez vite.",
        "L'année a été chargée avec le nouveau travail et la maison.",
        "C'est ma fille qui m'aide à taper ce message.",
        "Je ne sais pas si je suis au bon endroit pour poser ma question.",
        "Je préfère avoir un avis avant de décider quoi que ce soit.",
        "Tout a commencé il y a un moment, je ne me souviens plus de la date.",
        "Nous étions en vacances à la montagne et il faisait très beau.",
        "Mon mari me dit que je lis trop de choses sur internet.",
        "J'ai gardé tous les papiers dans une pochette si besoin.",
        "Je suis désolée si mon message est un peu long.",
        "Mon prochain rendez-vous n'est que dans trois semaines.",
        "Ce soir-là nous regardions la télévision en famille.",
        "La pharmacie du coin n'a pas su m'en dire plus.",
        "D'habitude je ne suis pas du genre à me plaindre.",
        "Depuis, j'y pense tous les jours.",
        "Mes amis ont tous un avis différent là-dessus.",
        "Je suis à la retraite, j'aime lire et m'occuper du jardin.",
        "Nous avions des invités ce week-end et j'avais cuisiné pour dix.",
        "C'est la première fois que je pose une question ici.",
        "Merci d'avoir pris le temps de lire tout cela.",
        "Les trains avaient encore du retard, j'ai écrit presque tout ceci sur le quai.",
        "Nous avons deux chiens et un chat, la maison n'est jamais calme.",
        "Samedi nous sommes allés au marché et nous avons croisé tout le village.",
        "Mon frère vit à l'étranger et ne revient qu'à Noël.",
        "Le temps est bizarre en ce moment, un jour du soleil et le lendemain de la neige.",
        "J'ai changé de travail au printemps et je fais quarante minutes de route.",
        "Notre cuisine est en travaux, tout est dans des cartons.",
        "C'est mon petit-fils qui m'a créé ce compte.",
        "J'ai lu votre dernière lettre d'information avec intérêt.",
        "Nous avons fêté les quatre-vingts ans de mon père le mois dernier.",
        "D'habitude je me promène au bord de la rivière après le déjeuner.",
        "Les enfants ont repris l'école et les soirées sont plus tranquilles.",
        "Ma collègue a vécu une histoire semblable, mais la sienne a fini autrement.",
        "Je ne suis pas très douée avec l'ordinateur, excusez les fautes.",
        "Le week-end je donne un coup de main dans une librairie d'occasion.",
        "Nous sommes mariés depuis trente ans et nous nous disputons encore pour la vaisselle.",
        "Il y avait une grève et le courrier est arrivé avec une semaine de retard.",
        "J'ai tout noté dans un cahier, page après page.",
        "On m'a dit d'être patiente et d'attendre un peu.",
        "Je serai absente du dix au vingt.",
        "L'appartement du dessus est vide et nous espérons des voisins sympathiques.",
        "Ma nièce étudie le droit et veut toujours des preuves de tout.",
        "Si vous avez besoin de mon adresse ou de ma date de naissance, dites-le-moi.",
        "J'espère que c'est clair, je n'ai jamais su expliquer les choses.",
        "Finalement nous avons vendu la vieille voiture et acheté des vélos.",
        "Ce n'est pas pressé, je crois, mais j'aimerais savoir.",
    ),
}
NEIGHBOURS = {
    "a": "qsz", "b": "vgn", "c": "xvd", "d": "sfe", "e": "rzd", "f": "dgr", "g": "fht", "h": "gjy",
    "i": "uok", "j": "hkn", "k": "jli", "l": "kmo", "m": "nlp", "n": "bmh", "o": "ipl", "p": "ol",
    "q": "aw", "r": "etf", "s": "dqz", "t": "ryg", "u": "yij", "v": "cbf", "w": "xqs", "x": "wcs",
    "y": "tuh", "z": "aes",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """How often each change is made to a training text."""

    courtesy: float = 0.12
    padding: float = 0.15
    no_accents: float = 0.15
    typos: float = 0.3
    no_punctuation: float = 0.15


def as_question(term: str, lang: str, generator: random.Random) -> str:
    """A term in a template; a language without templates keeps the term."""
    template = generator.choice(TEMPLATES.get(lang, ("{}",)))
    is_acronym = term[:2].isupper()
    lowered = term if is_acronym or generator.random() < 0.3 else term[:1].lower() + term[1:]
    return template.format(lowered)


def altered(text: str, lang: str, generator: random.Random, rates: Rates) -> str:
    """The text with some of the changes, each at its own rate."""
    if lang in COURTESIES and generator.random() < rates.courtesy:
        before, after = generator.choice(COURTESIES[lang])
        text = f"{before}{text}{after}"
    if lang in PADDING and generator.random() < rates.padding:
        text = padded(text, lang, generator)
    if generator.random() < rates.no_accents:
        text = without_accents(text)
    if generator.random() < rates.typos:
        text = with_typos(text, generator, generator.choice((0.02, 0.04, 0.06)))
    if generator.random() < rates.no_punctuation:
        text = without_punctuation(text)
    return text


def padded(text: str, lang: str, generator: random.Random) -> str:
    """The text somewhere in a letter of 2 to 16 sentences that say nothing."""
    sentences = list(PADDING[lang])
    generator.shuffle(sentences)
    sentences = sentences[: generator.choice((2, 4, 8, 16))]
    sentences.insert(generator.randint(0, len(sentences)), text)
    return " ".join(sentences)


def neutral_letters(lang: str, count: int, seed: int) -> list[str]:
    """Letters of 1 to 6 sentences that ask for nothing: out of scope, whatever stands around."""
    generator = random.Random(f"{seed}/{lang}")
    letters = [
        " ".join(generator.sample(PADDING[lang], generator.randint(1, 6))) for _ in range(count)
    ]
    return list(dict.fromkeys(letters))


def without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def without_punctuation(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).split())


def with_typos(text: str, generator: random.Random, rate: float = 0.04) -> str:
    """A slip for each 25 letters or so, at least one: dropped, doubled, swapped, neighbour key."""
    places = [i for i, c in enumerate(text) if c.isalpha()]
    if len(places) < 4:
        return text
    letters = list(text)
    for place in generator.sample(places, k=max(1, round(rate * len(places)))):
        letter = letters[place]
        kind = generator.randrange(4)
        if kind == 0:
            letters[place] = ""
        elif kind == 1:
            letters[place] = letter * 2
        elif kind == 2 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letter
        else:
            letters[place] = generator.choice(NEIGHBOURS.get(letter.lower(), letter))
    return "".join(letters)
