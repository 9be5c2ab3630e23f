"""What a question is about where its source does not say: the words that other questions lack."""

from scripts.datasets.record import normal_name, plain_words

# Words that medical questions share whatever they are about, English and French.
_OF_ANY_QUESTION = frozenset(
    (
        "what which who whom whose when where why how is are was were be been do does did can "
        "could should would will may might must has have had the a an of for in on at to from "
        "with by about between and or not no any some there it its this that these those i you my "
        "your me we our people person patient patients someone one if as than more most tell "
        "explain give describe define mean means meaning called known information research say "
        "outlook outcome long take last common cause causes caused causing symptom symptoms sign "
        "signs treatment treatments treat treated treating therapy therapies cure cured diagnosis "
        "diagnose diagnosed diagnosing test tests prevent prevented prevention risk factor "
        "factors get gets getting inherit inherited genetic gene genes change changes related "
        "affect affects affected happen happens need know see doctor complication complications "
        "help manage managed living prognosis quel quelle quels quelles que quoi qui quand ou "
        "pourquoi comment est sont etre peut faire fait le la les l un une des du de d en dans au "
        "aux pour par avec sur et ce cette ces mon ma mes votre vos il elle ils elles se s ai "
        "avoir symptome symptomes signe signes traitement traitements traiter soigner guerir "
        "diagnostic diagnostiquer prevenir risque risques maladie"
    ).split()
)


def topic_of(question: str) -> str:
    """Return the normal name of what the question is about; "" when no word is left.

    "What is eczema?" and "How is eczema treated?" have the same topic. Synonyms do not.
    """
    words = [word for word in plain_words(question) if word not in _OF_ANY_QUESTION]
    return normal_name(" ".join(words)) if words else ""
