"""Word lists of the training data, and made-up words that no list contains. Standard library only."""

from __future__ import annotations

import random

HE = (
    "Tom Leo Ben Max Sam Omar Ivan Karl Hugo Paul Finn Noah Adam Jack Luca Theo Eric Dan Bob Joe Ali Raj Ken Lars "
    "Nico Felix Oscar Peter Simon Victor Yusuf Amir Diego Marco Pedro Jonas Emil Otto Anton Pavel"
).split()
SHE = (
    "Mia Ana Eva Lily Sara Nina Ida Rosa Emma Zoe Lena Maya Ruth Jane Kate Amy Clara Olga Vera Ella Alice Lucy "
    "Anna Julia Marta Sofia Nora Hana Priya Aisha Fatima Greta Ingrid Carmen Helen Laura Irene Tanya Yuki Mei"
).split()
NAMES = HE + SHE
ITEMS = (
    "apples pears plums marbles stamps coins cards books pens shells stickers eggs cookies balloons buttons beads "
    "stones cakes lemons oranges tickets bottles candles nails screws cups plates flowers seeds carrots potatoes "
    "tomatoes nuts pencils toys keys badges ribbons bricks boxes muffins sweets peaches grapes photos maps "
    "letters chairs lamps socks"
).split()
EDIBLE = frozenset(
    "apples pears plums eggs cookies cakes lemons oranges carrots tomatoes nuts muffins sweets peaches grapes".split()
)
PACKS = "boxes bags packs baskets crates jars trays sacks cases tins".split()
RELATIVES = (
    "sister brother mother father aunt uncle cousin son daughter friend boss teacher neighbour wife husband "
    "doctor nephew niece grandmother grandfather roommate colleague coach"
).split()
THINGS = (
    "boat cat dog horse ship band company house street robot plant village school bike car farm shop hamster "
    "parrot rabbit goat cow turtle fish lizard snake team project book song film garden hotel cafe bakery "
    "island river hill castle tower bridge server laptop phone printer kitten puppy tractor truck van train canoe "
    "yacht drone guitar piano violin tree cactus lake mill barn studio club choir bear goose duck hen owl fox "
    "mouse ferret donkey camel bank gym brand"
).split()
FAVOURITES = (
    "colour color food drink animal song film book city season fruit game sport flower band dish cheese cake tea "
    "number singer writer tree bird month day hobby dessert soup shop park place series painter river"
).split()
VALUES = (
    "red blue green teal purple orange yellow pink black white grey brown silver gold crimson violet amber pizza "
    "pasta rice soup bread cheese sushi curry salad coffee tea milk juice water cocoa lion tiger wolf eagle otter "
    "panda zebra winter summer spring autumn mango cherry banana kiwi chess tennis football hockey golf rugby "
    "rowing tulip rose lily daisy orchid oak birch maple cedar copper velvet marble thunder river meadow harbour "
    "lantern pepper ginger saffron basil walnut almond honey maple comet falcon raven heron badger hazel willow "
    "cotton silk"
).split()
CODES = (
    "locker code|room number|lucky number|bus line|ticket number|flat number|shoe size|door code|PIN|house number|"
    "phone number|customer number|seat number|order number|gate number|table number|key number|post code|badge number"
).split("|")
CITIES = (
    "Oslo Paris Rome Berlin Madrid Lisbon Vienna Prague Dublin London Athens Cairo Lagos Nairobi Delhi Mumbai "
    "Tokyo Osaka Seoul Beijing Sydney Perth Lima Quito Bogota Boston Denver Austin Dallas Chicago Toronto "
    "Montreal Havana Warsaw Riga Tallinn Helsinki Bergen Malmo Turin Milan Naples Zurich Geneva Munich Hamburg "
    "Leipzig Lyon Nice Porto Seville Kyoto"
).split()
EVENTS = (
    "meeting party concert exam wedding lesson dinner match race flight interview trip visit lunch course picnic "
    "parade workshop festival reunion lecture ceremony auction market play rehearsal call review deadline holiday"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
OBJECTS = (
    "key wallet passport umbrella hammer ladder ring letter camera map ticket lamp scarf torch rope watch purse "
    "razor brush drill saw knife spoon blanket pillow jacket hat charger cable remote notebook ruler stapler "
    "flask basket kettle"
).split()
SPOTS = (
    "kitchen garage cellar attic drawer cupboard garden hall office bedroom bathroom car shed basement closet "
    "desk fridge box bag suitcase pantry wardrobe library lobby workshop oven sink chest cabinet locker"
).split()
JOBS = (
    "nurse teacher baker pilot farmer lawyer painter driver cook doctor plumber writer singer carpenter gardener "
    "dentist engineer waiter tailor sailor miner librarian butcher barber judge florist mechanic astronomer"
).split()
TOPICS = (
    "weather time news price distance score balance status route schedule forecast rate traffic menu stock "
    "temperature level address email contact reminder alarm timer light door song video photo file note task "
    "ticket order invoice parcel room table seat flight hotel train bus taxi recipe meal book page word map song "
    "radio channel camera heater fan pump valve sensor battery signal printer server backup report log user "
    "account password profile message letter calendar event lesson exam grade team player game level points "
    "coupon shop product review size weight speed height volume humidity"
).split()
FIELDS = (
    "city place name title user item id code topic day date person room country query text key subject target "
    "product station street number label file team channel device language region area owner"
).split()
COUNTS = "amount count minutes hours days size level seats pages limit quantity age year volume speed degrees".split()
RESULT_KEYS = (
    "temperature sky wind price total state status result value rain humidity distance time count level left "
    "owner next last size speed rating stock colour seats gate delay message title mode power score length weight "
    "version reply"
).split()
RESULT_WORDS = (
    "clear cloudy sunny rainy windy open closed ready busy late early full empty high low on off new old good bad "
    "sent done saved lost found free booked paid unpaid active idle warm cold dry wet stable broken fixed north "
    "south east west"
).split()
COMMON = (
    "the a of to in is it and that was for on are with as at be this have from or one had by word but not what "
    "all were we when your can said there use an each which she do how their if will up other about out many then "
    "them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part over "
    "sound take only little work know place year live me back give most very after thing our just name good "
    "sentence man think say great where help through much before line right too mean old any same tell boy follow "
    "came want show also around form three small set put end does another well large must big even such because "
    "turn here why ask went men read need land different home us move try kind hand picture again change off play "
    "spell air away animal house point page letter mother answer found study still learn should world high every "
    "near add food between own below country plant last school father keep tree never start city earth eye light "
    "thought head under story saw left few while along might close something seem next hard open example begin "
    "life always those both paper together got group often run important until children side feet car mile night "
    "walk white sea began grow took river four carry state once book hear stop without second late miss idea "
    "enough eat face watch far really almost let above girl sometimes mountain cut young talk soon list song "
    "being leave family"
).split()
THEMES = (
    "gravity photosynthesis Napoleon Rome dinosaurs volcanoes jazz chess history physics biology chemistry "
    "politics law economics inflation music poetry opera France Germany Brazil China Egypt Canada Mars Jupiter "
    "Saturn moon sun stars galaxies atoms electrons enzymes cells viruses bacteria whales sharks bees ants "
    "elephants Shakespeare Mozart Einstein Newton Darwin Plato Python Java Rust Linux databases networks "
    "algorithms recursion sorting compilers kernels blockchain football cricket tennis cooking baking gardening "
    "yoga sleep coffee wine vitamins diets cancer asthma love death war peace religion philosophy ethics money "
    "taxes banks stocks cars planes trains bridges oceans deserts forests climate robots computers phones "
    "internet satellites rockets lasers magnets electricity steam oil gold iron glass paper cotton"
).split()

_ONSET = "b br c ch cl d dr f fl g gl gr h j k kr l m n p pl qu r s sh sk sl st t tr th v w y z".split()
_VOWEL = "a e i o u a e i o ai ea ie oo ou ei".split()
_CODA = ["", "", "", "n", "r", "l", "s", "x", "m", "t", "k", "nd", "rn", "th", "ck", "sh"]


def made_up(rng: random.Random, capital: bool | None = None) -> str:
    """One pronounceable word of 1 to 3 syllables that is in no list (nearly always)."""
    word = "".join(
        rng.choice(_ONSET) + rng.choice(_VOWEL) + rng.choice(_CODA) for _ in range(rng.choices((1, 2, 3), (2, 5, 2))[0])
    )
    return word.capitalize() if (rng.random() < 0.5 if capital is None else capital) else word


def name(rng: random.Random) -> str:
    """A name for a person, pet or thing: a third from the lists, the rest made up, so that copying is learnt."""
    draw = rng.random()
    if draw < 0.3:
        return rng.choice(NAMES)
    if draw < 0.42:
        return rng.choice(VALUES).capitalize()
    if draw < 0.5:
        return rng.choice(THEMES + CITIES).capitalize()
    return made_up(rng, True)


def value(rng: random.Random) -> str:
    """A lower-case value, such as a colour or a dish; sometimes made up, sometimes two words."""
    draw = rng.random()
    word = rng.choice(VALUES) if draw < 0.6 else rng.choice(COMMON[40:]) if draw < 0.7 else made_up(rng, False)
    return f"{rng.choice(VALUES)} {word}" if rng.random() < 0.1 else word


def place(rng: random.Random) -> str:
    """A place name."""
    return rng.choice(CITIES) if rng.random() < 0.6 else made_up(rng, True)
