"""Commands to a smart home in several languages, and the intent of each: "turn the desk lamp on" -> HassTurnOn.

Source: the sentence templates of Home Assistant, as the installed package home-assistant-intents (Apache-2.0) carries
them, read with their own parser, hassil (Apache-2.0). No network. What they leave open, the names of rooms, devices
and so on, is filled from the table at the end of this file.
"""

import random
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hassil
import home_assistant_intents
import tensorflow_datasets as tfds

from attention_zoo.data.labelled import Labelled, LabelledText, labelled_text, split_groups, without_repeats
from attention_zoo.data.prepare import as_text, examples, prepared

DRAWS = 4  # how often a template is drawn from, for each sentence wanted of it: some have few sentences


class Grammar(NamedTuple):
    """What templates refer to: rules by name, and the values that a slot's list can take."""

    rules: Mapping[str, hassil.Expression]
    lists: Mapping[str, Sequence[hassil.Expression]]


class Template(NamedTuple):
    """A sentence template, the intent it stands for, and the kinds of device that its {name} can be."""

    text: str
    intent: str
    domains: tuple[str, ...]


def draw(expression: hassil.Expression, grammar: Grammar, rng: random.Random) -> str:
    """One text of a template, every choice in it made at random, each outcome as likely as the next.

    Raises:
        ValueError: it refers to a rule or a list that the grammar lacks.
    """
    match expression:
        case hassil.TextChunk():
            return expression.original_text
        case hassil.Alternative():
            return draw(rng.choice(expression.items), grammar, rng)
        case hassil.Permutation():
            return "".join(draw(item, grammar, rng) for item in rng.sample(expression.items, len(expression.items)))
        case hassil.Group():
            return "".join(draw(item, grammar, rng) for item in expression.items)
        case hassil.RuleReference() if expression.rule_name in grammar.rules:
            return draw(grammar.rules[expression.rule_name], grammar, rng)
        case hassil.ListReference() if expression.list_name in grammar.lists:
            return draw(rng.choice(grammar.lists[expression.list_name]), grammar, rng)
    raise ValueError(f"draw: a rule or a list that the language has; got {expression}")


def parse(text: str) -> hassil.Expression:
    """A template as a tree."""
    return hassil.parse_sentence(text).expression


def sentences(template: Template, grammar: Grammar, number: int, rng: random.Random) -> list[str]:
    """At most `number` different sentences of a template."""
    tree = parse(template.text)
    names = [name for domain in template.domains for name in grammar.lists[DOMAINS.get(domain, domain)]]
    own = Grammar(grammar.rules, {**grammar.lists, "name": names})
    found: dict[str, None] = {}
    for _ in range(DRAWS * number):
        found[" ".join(draw(tree, own, rng).split())] = None
        if len(found) == number:
            break
    return list(found)


def grammar_of(language: str) -> Grammar:
    """The rules and lists of a language; its open lists are filled from `HOUSEHOLD`."""
    content: Any = home_assistant_intents.get_intents(language)
    rules = {name: parse(text) for name, text in content["expansion_rules"].items()}
    lists = {name: _values(values) for name, values in content["lists"].items() if not values.get("wildcard")}
    for entry in f"{NAMES} | {HOUSEHOLD[language].strip()}".replace("\n", "|").split("|"):
        names, values = entry.split(":")
        lists.update({name: [parse(value.strip()) for value in values.split(",")] for name in names.split()})
    return Grammar(rules, lists)


def _values(values: Mapping[str, Any]) -> list[hassil.Expression]:
    if "values" in values:
        return [parse(value["in"]) for value in values["values"]]
    limits = values["range"]
    return [parse(str(number)) for number in range(limits["from"], limits["to"] + 1, limits.get("step", 1))]


def templates(language: str) -> list[Template]:
    """The templates of a language, in the package's order."""
    content: Any = home_assistant_intents.get_intents(language)
    return [
        Template(text, intent, tuple(block.get("requires_context", {}).get("domain", ())))
        for intent, blocks in content["intents"].items()
        for block in blocks["data"]
        for text in block["sentences"]
    ]


@dataclass(eq=False)
class IntentsConfig(tfds.core.BuilderConfig):
    """What the data depends on, all of it in the name: the words of the table and the packages' versions too."""

    name: str = ""
    languages: tuple[str, ...] = ("en",)
    sentences_per_template: int = 8
    data_seed: int = 0

    def __post_init__(self) -> None:
        words = zlib.crc32("".join([NAMES, *(HOUSEHOLD[language] for language in self.languages)]).encode())
        packages = f"intents{version('home-assistant-intents')}-hassil{version('hassil')}"
        settings = f"{self.sentences_per_template}sentences-seed{self.data_seed}"
        self.name = f"{'-'.join(self.languages)}-{settings}-{packages}-{words:08x}"


class Intents(tfds.core.GeneratorBasedBuilder):
    """Sentences drawn from Home Assistant's templates; no sentence is there with two intents."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("text", "intent", "language", "template")
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            supervised_keys=("text", "intent"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"sentences": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        config = self.builder_config
        yield from enumerate(row for language in config.languages for row in drawn(language, config))


def drawn(language: str, config: IntentsConfig) -> Iterator[dict[str, str]]:
    """The sentences of one language, template by template; each template's follow from the seed and itself alone."""
    grammar = grammar_of(language)
    for template in templates(language):
        rng = random.Random(f"{config.data_seed} {language} {template}")
        row = {"intent": template.intent, "language": language, "template": f"{language}: {template.text}"}
        for text in sentences(template, grammar, config.sentences_per_template, rng):
            yield {"text": text, **row}


def intents(
    batch_size: int = 64,
    languages: Sequence[str] = ("en", "de", "fr", "es", "it", "nl"),
    fold: int = 0,
    folds: int = 5,
    *,
    sentences_per_template: int = 8,
    data_seed: int = 0,
    tokenizer: str = "words",
    vocabulary_size: int | None = None,
    max_length: int | None = None,
    buckets: int = 4,
    data_dir: Path | str | None = None,
) -> LabelledText:
    """Commands to classify by intent, split by template: no sentence of test is from a template of train or dev.

    Fold `fold` of `folds` is the test split, half of the next one the dev split, see `labelled.split_groups`; the
    groups are the templates, "LANGUAGE: TEMPLATE". Sentences that stand for two intents are left out; so are repeats,
    see `labelled.without_repeats`. `notes` counts all of that. Prepared at first use, in seconds.

    Raises:
        ValueError: an argument is out of range, or there are no names of rooms and devices in a language.
    """
    _check(languages, sentences_per_template)
    config = IntentsConfig(
        languages=tuple(languages), sentences_per_template=sentences_per_template, data_seed=data_seed
    )
    every, notes = unambiguous(read(prepared(Intents, config, data_dir)))
    splits, more = split_groups(every, fold, folds, data_seed)
    splits, repeats = without_repeats(splits)
    return labelled_text(
        splits,
        sorted(set(every.labels)),
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
        max_length=max_length,
        batch_size=batch_size,
        buckets=buckets,
        notes=[*notes, *more, *repeats],
    )


def read(builder: tfds.core.DatasetBuilder) -> Labelled:
    """All sentences as they were drawn, their intents, and their templates as groups."""
    rows = list(examples(builder, "sentences"))
    return Labelled(*([as_text(row[name]) for row in rows] for name in ("text", "intent", "template")))


def unambiguous(rows: Labelled) -> tuple[Labelled, list[str]]:
    """The rows without texts that stand for two labels, and a note of how many those are."""
    labels = defaultdict(set)
    for text, label in zip(rows.texts, rows.labels, strict=True):
        labels[text.casefold()].add(label)
    kept = [row for row, text in enumerate(rows.texts) if len(labels[text.casefold()]) == 1]
    left = len(rows.texts) - len(kept)
    return rows.take(kept), [f"{left:,} of {len(rows.texts):,} sentences left out, as they stand for two intents"]


def _check(languages: Sequence[str], sentences_per_template: int) -> None:
    if sentences_per_template < 1:
        raise ValueError(f"sentences_per_template is {sentences_per_template}: it must be at least 1")
    unknown = [language for language in languages if language not in HOUSEHOLD]
    if unknown or not languages or len(set(languages)) < len(languages):
        known = ", ".join(HOUSEHOLD)
        raise ValueError(f"intents: different languages out of {known}; got {', '.join(languages) or 'none'}")


# Kinds of device that go by the names of another kind.
DOMAINS = {"switch": "light", "input_boolean": "light", "sensor": "binary_sensor"}
DOMAINS |= {"script": "scene", "button": "scene", "input_button": "scene"}
# A household's words: LISTS: VALUES | ..., where a list is a slot of the templates, or a kind of device that has names.
NAMES = (
    """person: Anna, Peter, Maria | weather: London, Madrid, Oslo | search_query: Beatles, Vivaldi, Bohemian Rhapsody"""
)
HOUSEHOLD = {
    "en": """
area: kitchen, living room, bedroom, bathroom, office, garage, hallway | floor: ground, first, upper | zone: work, gym
shopping_list_item todo_list_item: milk, apples, toilet paper, water the plants | timer_name: pizza, tea, homework
message: dinner is ready, good night everyone | timer_command: turn off the lights, open the garage, play some music
light: desk lamp, ceiling light, coffee machine | fan: ceiling fan, ventilation | cover: blind, garage door, curtain
lock: front door, garden gate, cellar door | valve: garden valve, sprinkler | media_player: television, radio, speaker
climate: thermostat, heat pump, radiator | vacuum: robot vacuum, upstairs vacuum | lawn_mower: lawn mower, mowing robot
todo: groceries, chores, packing list | scene: movie night, good morning, party | binary_sensor: motion sensor, phone
""",
    "de": """
area: Küche, Wohnzimmer, Schlafzimmer, Bad, Büro, Garage, Flur | floor: Erdgeschoss, Dachgeschoss, Keller | zone: Arbeit
shopping_list_item todo_list_item: Milch, Äpfel, Klopapier, Blumen gießen | timer_name: Pizza, Tee, Hausaufgaben
message: das Essen ist fertig, gute Nacht | timer_command: mach das Licht aus, öffne die Garage, spiel Musik
light: Schreibtischlampe, Deckenlicht, Kaffeemaschine | fan: Deckenventilator, Lüftung | cover: Rollo, Garagentor
lock: Haustür, Gartentor, Kellertür | valve: Gartenventil, Rasensprenger | media_player: Fernseher, Radio, Lautsprecher
climate: Thermostat, Wärmepumpe, Heizkörper | vacuum: Saugroboter, Staubsauger oben | lawn_mower: Rasenmäher, Mähroboter
todo: Einkäufe, Hausarbeit, Packliste | scene: Filmabend, Guten Morgen, Party | binary_sensor: Bewegungsmelder, Handy
""",
    "fr": """
area: cuisine, salon, chambre, salle de bain, bureau, garage, couloir | floor: rez-de-chaussée, premier étage, sous-sol
shopping_list_item todo_list_item: lait, pommes, papier toilette, arroser les plantes | timer_name: pizza, thé, devoirs
message: le dîner est prêt, bonne nuit à tous | timer_command: éteins la lumière, ouvre le garage, mets de la musique
light: lampe de bureau, plafonnier, cafetière | fan: ventilateur, extracteur | cover: store de gauche, garage, rideau
lock: porte d'entrée, portail | valve: vanne du jardin, arroseur | media_player: télévision, radio, enceinte
climate: thermostat, pompe à chaleur, radiateur | vacuum: robot aspirateur, aspirateur | lawn_mower: tondeuse
todo: courses, ménage, valise | scene: soirée cinéma, bonjour, fête | binary_sensor: détecteur, portable | zone: travail
""",
    "es": """
area: cocina, salón, dormitorio, baño, despacho, garaje, pasillo | floor: baja, primera, sótano | zone: trabajo
shopping_list_item todo_list_item: leche, manzanas, papel higiénico, regar las plantas | timer_name: pizza, té, deberes
message: la cena está lista, buenas noches a todos | timer_command: apaga las luces, abre el garaje, pon música
light: lámpara de mesa, luz del techo, cafetera | fan: ventilador, extractor | cover: persiana, garaje, cortina
lock: puerta principal, verja del jardín | valve: válvula del jardín, aspersor | media_player: televisor, radio, altavoz
climate: termostato, bomba de calor, radiador | vacuum: robot aspirador, aspiradora | lawn_mower: cortacésped, robot
todo: compras, tareas, equipaje | scene: noche de cine, buenos días, fiesta | binary_sensor: sensor, teléfono
""",
    "it": """
area: cucina, soggiorno, camera, bagno, ufficio, garage, corridoio | floor: terra, primo, seminterrato | zone: lavoro
shopping_list_item todo_list_item: latte, mele, carta igienica, annaffiare le piante | timer_name: pizza, tè, compiti
message: la cena è pronta, buonanotte a tutti | timer_command: spegni le luci, apri il garage, metti la musica
light: lampada da tavolo, lampadario, caffettiera | fan: ventilatore, aspiratore | cover: tapparella, garage, tenda
lock: porta d'ingresso, cancello | valve: valvola, irrigatore | media_player: televisore, radio, altoparlante
climate: termostato, pompa di calore, radiatore | vacuum: robot aspirapolvere, aspirapolvere | lawn_mower: tagliaerba
todo: spesa, faccende, bagagli | scene: serata film, buongiorno, festa | binary_sensor: sensore, telefono
""",
    "nl": """
area: keuken, woonkamer, slaapkamer, badkamer, kantoor, garage, gang | floor: begane grond, zolder, kelder | zone: werk
shopping_list_item todo_list_item: melk, appels, wc-papier, de planten water geven | timer_name: pizza, thee, huiswerk
message: het eten is klaar, welterusten allemaal | timer_command: doe het licht uit, open de garage, speel muziek
light: bureaulamp, plafondlamp, koffiezetapparaat | fan: ventilator, ventilatie | cover: rolluik, garagedeur, gordijn
lock: voordeur, tuinpoort, kelderdeur | valve: tuinkraan, sproeier | media_player: televisie, radio, luidspreker
climate: thermostaat, warmtepomp, radiator | vacuum: robotstofzuiger, stofzuiger | lawn_mower: grasmaaier, maairobot
todo: boodschappen, klusjes, paklijst | scene: filmavond, goedemorgen, feest | binary_sensor: bewegingsmelder, telefoon
""",
}
