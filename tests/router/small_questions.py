"""A small invented bilingual set: every specialty has its own words, in both languages."""

import random

from router.training.examples import OUT_OF_SCOPE, LabelledText

WORDS = {
    "cardiology": ("heart palpitations angina", "coeur palpitations angine"),
    "dermatology": ("rash eczema skin", "rougeurs eczema peau"),
    "endocrinology": ("thyroid insulin diabetes", "thyroide insuline diabete"),
    "gastroenterology": ("stomach reflux bowel", "estomac reflux intestin"),
    "hematology": ("anemia blood platelets", "anemie sang plaquettes"),
    "infectious_disease": ("malaria virus fever", "paludisme virus fievre"),
    "nephrology_urology": ("kidney bladder urine", "rein vessie urine"),
    "neurology": ("migraine seizure tremor", "migraine convulsion tremblement"),
    "obstetrics_gynecology": ("pregnancy uterus menopause", "grossesse uterus menopause"),
    "oncology": ("tumour chemotherapy cancer", "tumeur chimiotherapie cancer"),
    "ophthalmology": ("eye cataract retina", "oeil cataracte retine"),
    "psychiatry": ("depression anxiety phobia", "depression anxiete phobie"),
    "pulmonology": ("lung asthma cough", "poumon asthme toux"),
    "rheumatology_orthopedics": ("knee arthritis joint", "genou arthrite articulation"),
    OUT_OF_SCOPE: ("football weather recipe guitar", "football meteo recette guitare"),
}
LABELS = tuple(sorted(set(WORDS) - {OUT_OF_SCOPE}))
_FRAMES = {
    "en": ("what can I do about my {}", "is {} worrying", "tell me about {} please"),
    "fr": ("que faire pour mon {}", "est-ce que {} est inquietant", "parlez moi de {} merci"),
}


def small_questions(seed: int) -> list[LabelledText]:
    """About 400 questions; another seed gives other frames and pairs of words."""
    generator = random.Random(seed)
    found = []
    for label, by_language in WORDS.items():
        for language, words in zip(("en", "fr"), by_language, strict=True):
            for _ in range(40 if label == OUT_OF_SCOPE else 12):
                topic = " ".join(generator.sample(words.split(), k=2))
                text = generator.choice(_FRAMES[language]).format(topic)
                found.append(LabelledText(text, label, language, "written", group=text))
    return found
