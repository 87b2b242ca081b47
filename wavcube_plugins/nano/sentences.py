"""Sentences for synthesised speech: a small grammar over our own lists of common English words.

>>> import random
>>> draw_sentence(random.Random(1))
'Sure, one of us sighed near the harp, and an apple fetched the iron onto the pear.'

Everything is spelt out in words, plain ASCII, so that different synthesisers say the same thing.
"""

from __future__ import annotations

import random
import re


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Alice Andrew Anna Arthur Barbara Ben Brian Carol Charles Chloe Claire Daniel David Diana Edward Ella Emma Eric
    Esther Ethan Frank George Grace Hannah Harold Helen Henry Hugo Isaac Jack James Jane Jason Joan John Joseph
    Joyce Judith Julia Karen Kevin Laura Leo Linda Lucy Margaret Maria Mark Martha Matthew Michael Molly Nathan Nina
    Noah Oliver Oscar Paul Peter Philip Rachel Rebecca Richard Robert Roger Rose Ruth Samuel Sarah Simon Sophie
    Stephen Susan Thomas Timothy Toby Vera Victor Walter William Zoe Joyce Roy Troy Lloyd Bruce Luke Jude Ruby Hugh
    Theo Beth
    """
)
PEOPLE = _words(
    """
    actor aunt baker barber boss boy brother builder butcher captain carpenter chef child clerk coach cook cousin
    dancer daughter dentist doctor driver editor engineer farmer father fisherman friend gardener girl grandfather
    guard guest guide hunter judge king lawyer leader librarian manager mayor merchant miner mother musician
    neighbour nephew niece nurse officer painter partner pilot plumber poet postman priest prince princess prisoner
    professor queen reporter sailor scholar scientist secretary shepherd singer sister soldier son stranger student
    tailor teacher thief tourist traveller uncle visitor waiter watchman witness woman writer cyclist juror voyager
    """
)
ANIMALS = _words(
    """
    ant badger bat bear beaver bee bird bull butterfly camel cat chicken cow crab crow deer dog donkey duck eagle
    elephant fox frog goat goose hamster hare hedgehog horse kitten lamb lion lizard magpie mole monkey moth mouse
    otter owl ox parrot penguin pig pigeon pony puppy rabbit rat raven seagull seal shark sheep snail snake sparrow
    spider squirrel swan tiger toad tortoise turkey turtle whale wolf worm zebra
    """
)
THINGS = _words(
    """
    anchor apple arrow axe bag ball balloon banana band banner barrel basket bath bathtub battery beam bed bell belt
    bench bicycle blanket boat bone book boot bottle bowl box bracelet branch brick bridge broom brush bucket button
    cabinet cable cage cake camera candle cane cannon canoe cap car card carpet carriage cart case ceiling chain
    chair chalk cheese cherry chest chimney clock cloth coat coin collar comb compass computer cork couch crate
    crown cup curtain cushion diary dictionary dish doll door drawer dress drum earring egg engine envelope fan
    feather fence flag flower flute fork fountain frame fridge furnace gate gift glass glove grape guitar hammer
    handle harp hat helmet hinge hook hose jacket jar jewel journal jug kettle key keyboard kite knife ladder lamp
    lantern leaf leash lemon letter lever lid lock loaf log machine magazine map marble mask match mattress measure
    medal melon microphone mirror mug mushroom nail necklace needle net newspaper notebook oar onion orange oven
    package pan parcel pear pearl peg pen pencil pepper photograph piano picture pillow pipe plank plate plough
    pocket poem pole poster pot potato present pump pumpkin purse puzzle quilt radio raft raincoat razor ribbon ring
    rocket roof rope rug ruler saddle sail sandwich saucepan saucer scarf screen screw shawl shed sheet shelf shield
    shirt shoe shovel sign skirt sledge slipper soap sock spade spear spoon spring stamp statue stick stone stool
    stove string suit suitcase sweater sword table tablet tank tap tape telephone television tent thread ticket tie
    tile tooth torch towel toy train tray treasure trophy truck trumpet tub tulip tunnel turnip umbrella van vase
    vest violin wagon wallet watch wheel whistle window wire yacht zip television garage collage toy coil joint
    voice
    """
)
IDEAS = _words(
    """
    accident adventure agreement answer argument bargain beginning bill blessing chance change chapter choice
    conversation corner crisis custom danger dance deal debt decision delay demand difference discovery discussion
    dispute doubt dream duty effort ending error example excuse expedition experiment failure fashion favour feeling
    flavour funeral future game habit hobby holiday hope hour idea illusion invention invitation joke journey lesson
    lie list measure meeting memory message method mistake moment mood mystery noise number occasion offer opinion
    option order pattern plan pleasure prize problem programme project promise proposal question quarrel race reason
    recipe report request rescue result reward riddle risk routine rule rumour sale scene schedule search secret
    shadow shock signal silence smell smile solution song sound speech story strategy surprise suspicion task taste
    test thought tradition treaty trick trouble truth tune vision visit vote warning wedding wish word
    """
)
MASSES = _words(
    """
    advice air bacon beef bread butter cheese clay coal coffee concrete copper cotton cream dirt dust flour fog
    fruit fuel furniture garlic gold grass gravel hay honey ice ink iron jam juice jelly lace leather lightning
    luggage meat metal milk money mud music mustard oil paint paper pasta pepper plaster porridge powder rain rice
    rubber rubbish salt sand silk silver smoke snow soil soup steam steel straw sugar sunshine syrup tea thunder
    timber tobacco traffic vinegar water wax weather wheat wine wood wool work yarn
    """
)
PLACES = _words(
    """
    airport alley attic avenue bakery balcony bank barn basement bay beach border building cabin cafe canal castle
    cave cellar cemetery church cinema city classroom cliff coast college cottage country courtyard desert dock
    downtown factory farm field forest fort gallery garden gym hall harbour hill hospital hotel house island
    junction jungle kitchen lake laboratory library lighthouse lounge market meadow mill mine monastery mountain
    museum nursery office orchard palace park path pier playground pond port prison pub quarry railway ranch
    restaurant river road school shop shore square stable stadium stage station street studio swamp temple theatre
    tower town university valley village vineyard warehouse waterfall wharf woods workshop yard zoo
    """
)
PLURAL = {
    **{"fisherman": "fishermen", "postman": "postmen", "watchman": "watchmen", "woman": "women", "child": "children"},
    **{"thief": "thieves", "mouse": "mice", "goose": "geese", "sheep": "sheep", "deer": "deer", "ox": "oxen"},
    **{"wolf": "wolves", "leaf": "leaves", "loaf": "loaves", "knife": "knives", "shelf": "shelves", "tooth": "teeth"},
    **{"scarf": "scarves", "woods": "woods", "piano": "pianos", "radio": "radios", "photograph": "photographs"},
}
ADJECTIVES = _words(
    """
    able active amazing ancient angry annual anxious ashamed awful awkward bad bare beautiful big bitter black blank
    blind blue blunt bold boring brave brief bright broad broken brown busy calm careful careless casual cautious
    charming cheap cheerful chilly clean clear clever cloudy clumsy coarse cold colourful common complete complex
    correct cosy crazy crooked cruel curious curly damp dangerous dark dead deaf dear deep delicate delicious
    different difficult dim dirty distant double dry dull dusty eager early easy elegant empty enormous equal exact
    excellent exciting expensive extra faint fair faithful false familiar famous fancy fast fat favourite fierce
    final fine firm flat foggy foolish foreign formal fragile free fresh friendly frozen full funny gentle genuine
    giant glad golden good gorgeous grand greedy green grey guilty handsome handy happy hard harmless harsh heavy
    helpful hidden high hollow honest horrible hot huge humble hungry icy ideal idle important innocent jealous
    jolly joyful keen kind large late lazy lean light little local lonely long loose loud lovely low loyal lucky mad
    magic main major massive mean merry mild modern modest muddy mysterious narrow nasty native natural near neat
    nervous new nice noble noisy normal obvious odd old open ordinary pale patient peaceful perfect plain pleasant
    polite poor popular precious pretty private proper proud pure purple quaint quick quiet rapid rare raw ready
    real red regular remote rich right ripe rough round royal rude rusty sad safe salty secret selfish separate
    serious shallow sharp shiny short shy silent silly silver simple single skilful sleepy slight slim slippery slow
    small smart smooth soft solid sore sour special spare square stale steady steep sticky stiff strange strict
    strong stubborn stupid sudden sweet swift tall tame tender terrible thick thin thirsty thorough tidy tight tiny
    tired tough true ugly unusual upset urgent usual vague valuable vast violent warm weak wealthy weary weird wet
    white whole wide wild wise wonderful wooden worn worthy wrong yellow young
    """
)
ADVERBS = _words(
    """
    again almost alone already always angrily anyway apart badly barely briefly brightly calmly carefully certainly
    cheaply clearly closely completely constantly directly easily eagerly early exactly fairly finally firmly freely
    gently gladly gradually greatly happily hardly heavily honestly hourly joyfully kindly lately lightly loudly
    mainly merely mostly nearly neatly nervously never nicely often only openly partly patiently perfectly plainly
    politely poorly possibly probably properly proudly quickly quietly rarely rather really recently roughly sadly
    safely secretly seldom sharply shortly silently simply slightly slowly smoothly softly sometimes soon steadily
    strangely suddenly surely swiftly thoroughly tightly together truly twice usually utterly vaguely warmly widely
    wisely yearly
    """
)
# "base" with a regular past, or "base:past".
ACTIONS = _words(
    """
    admire admit answer arrange attach attack avoid bake balance bend:bent blame boil borrow break:broke
    bring:brought brush build:built burn burst:burst bury buy:bought call carry carve catch:caught change charge
    chase check chew choose:chose clean climb close collect compare cook copy count cover crush cut:cut damage
    decorate deliver deny describe destroy discover dislike divide drag draw:drew drink:drank drive:drove
    drop:dropped dry earn eat:ate empty enjoy escape examine exchange expect explain explore feed:fed fetch
    fight:fought fill find:found finish fix fold follow forget:forgot forgive:forgave freeze:froze gather give:gave
    grab:grabbed greet guard guess handle hang:hung hate hear:heard heat help hide:hid hire hit:hit hold:held
    hurt:hurt ignore imagine improve inspect invent join judge keep:kept kick kiss knock know:knew lead:led learn
    leave:left lend:lent lift light:lit like lock lose:lost love make:made mark measure meet:met melt mend mention
    miss mix move need notice obey observe offer open order own pack paint park pass pay:paid peel pick plan:planned
    polish pour praise prefer:preferred prepare press print produce promise protect prove pull punch punish push
    read:read receive recognise record reduce refuse remember remove rent repair repeat replace reach rescue respect
    return ride:rode ring:rang rob:robbed roll rub:rubbed save scratch see:saw seize sell:sold send:sent serve
    shake:shook share shave show:showed shut:shut sing:sang smell solve spare spend:spent spill spoil spot:spotted
    spread:spread squeeze steal:stole stop:stopped store study sweep:swept swing:swung take:took taste teach:taught
    tear:tore test thank throw:threw tie:tied touch trade trap:trapped treat trust try turn understand:understood
    use value visit want warm warn wash waste watch wear:wore weigh welcome win:won wind:wound wipe wrap:wrapped
    write:wrote
    """
)
MOTIONS = _words(
    """
    agree appear argue arrive bark begin:began behave bleed:bled blink bow breathe collapse come:came complain cough
    crawl cry dance disappear dive doubt dream emerge fall:fell fly:flew fall:fell gallop giggle glow go:went
    grow:grew grumble hesitate hurry jog:jogged joke jump kneel:knelt laugh lean march mumble nod:nodded pause play
    pray quarrel reply rest rise:rose run:ran rush sail scream shine:shone shiver shout sigh sit:sat skate
    sleep:slept slide:slid slip:slipped smile sneeze snore speak:spoke stand:stood stare stay stumble succeed suffer
    swear:swore swim:swam talk think:thought travel:travelled tremble turn vanish wait wake:woke walk wander wave
    weep:wept whisper whistle wonder work yawn yell
    """
)
NUMBERS = _words(
    """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
    """
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = _words(
    """
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth twentieth
    """
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
COLOURS = _words(
    "amber beige black blue bronze brown crimson golden green grey orange pink purple red silver white yellow"
)
PREPOSITIONS = _words(
    "above across against along around at behind below beneath beside between beyond by inside into near off on onto "
    "opposite outside over past through towards under underneath upon within without"
)
TIMES = tuple(
    line.strip()
    for line in """
    after lunch; at dawn; at dusk; at midnight; at noon; before breakfast; before dinner; during the night;
    each morning; every evening; every summer; for a while; for the first time; in a moment; in the afternoon;
    in the spring; last night; last winter; last year; later today; next month; next week; not long ago;
    once a year; the other day; this afternoon; this morning; throughout the day; today; tomorrow; tonight;
    twice a week; until sunset; without delay; yesterday; a fortnight ago; over the weekend; as usual; by accident;
    on purpose; once again; right now; all year round
    """.split(";")
)
CONJUNCTIONS = _words("and but so because while although before after when until whenever unless though")
EXCLAMATIONS = tuple(
    line.strip()
    for line in """
    Oh dear; Good morning; Thank you; Excuse me; Hello there; Well done; Of course; No, thanks; Yes, please;
    What a shame; Good heavens; Never mind; Wait a minute; Listen; Careful; Hurry up; Cheers; Goodbye; Absolutely;
    Nonsense; Enjoy; Just a second; I beg your pardon; Good luck; Hooray; You are right; Not at all; Look out; Sure;
    To be honest
    """.split(";")
)
# For coverage: consonant clusters, and vowels and consonants that everyday sentences hardly use.
RARE = _words(
    """
    vision measure pleasure leisure treasure usual beige garage closure exposure television Asia collision decision
    division illusion occasion rouge seizure azure boy coin noise voice choice join point avoid enjoy employ destroy
    oyster royal soil toilet annoy hoist book cook could foot good hook look pull push put should stood wood would
    bush full sugar cushion bullet butcher thing thank thick thin thirst thirty thorn three throat throne through
    thumb thunder author bath breath cloth death earth faith growth health length math month mouth north path south
    teeth truth width youth although bathe breathe clothe father feather gather leather mother other rather smooth
    these this those weather whether yacht year yellow yes yesterday yoghurt young youth beauty cube cure duty few
    fuel huge music mute pew pure refuse unit view chalk cheese cherry church chin choose jail jaw jeep jelly join
    joke jump June just wage wedge bridge edge gem giant ginger hinge judge lounge orange splash spray spring square
    squeak squirrel strange street strength stretch strict strong script scream screw throw thrill shrimp shrink
    sixths texts asks wasps clothes twelfths glimpsed prompts fifths bulbs films helps wolves cows loud mouth mouse
    ounce powder shower tower bear chair dare fair hair rare share stare beer cheer clear fear hear near bird burn
    church dirt first girl hurt nurse purse
    """
)

# What stands in braces is drawn by the function of that name in `_FILLERS`, from left to right.
_CLAUSES = tuple(
    line.strip()
    for line in """
    {subject} {acted} {object}
    {subject} {acted} {object} {where}
    {subject} {acted} {object} {when}
    {subject} {adverb} {acted} {object}
    {subject} {moved} {where}
    {subject} {moved} {adverb}
    {subject} {moved} {where} {when}
    {subject} will {act} {object} {when}
    {subject} could not {act} {object}
    {subject} wanted to {act} {object}
    {subject} forgot to {act} {object} {when}
    {subject} has never seen {object}
    {subject} was {adjective} and {adjective}
    {subject} is more {adjective} than {object}
    {subject} seems rather {adjective} {when}
    {plural} are usually {adjective}
    {plural} were {where}
    {number} {plural} {moved} {where}
    {number} {plural} {acted} {object}
    there is {a_thing} {where}
    there were {number} {plural} {where}
    there was no {mass} left {where}
    the {mass} was too {adjective} to {act}
    the {mass} in {the_place} is {adjective}
    {name} and {name} {acted} {object}
    {name} told {person} about {object}
    {name} gave {person} {a_thing}
    {name} bought {number} {plural} and some {mass}
    {person} asked {name} to {act} {object}
    the {idea} about {object} was {adjective}
    the {idea} made {person} {adjective}
    nobody {acted} {object} {when}
    everyone {acted} {object} {adverb}
    somebody must {act} {object}
    I would like to {act} {object}
    I think that {person} {acted} {object}
    we should {act} {object} {when}
    you can {act} {object} with {a_thing}
    they have lived near {the_place} for {number} years
    it was {adjective} {where}
    it takes {number} minutes to {act} {object}
    my {peoplenoun} is {adjective} about {object}
    his {thing} and her {thing} are {colour}
    our {peoplenoun} {moved} to {the_place}
    {when} {subject} {acted} {object}
    the {ordinal} {thing} was {adjective}
    on the {ordinal} of {month} {subject} {moved} {where}
    every {day} {subject} {acted} {object}
    """.strip().splitlines()
)
_QUESTIONS = tuple(
    line.strip()
    for line in """
    Did {subject} {act} {object}
    Could you {act} {object} {when}
    Why did {subject} {act} {object}
    Where is the {adjective} {thing}
    Who {acted} {object} {when}
    When will {subject} {act} {object}
    How many {plural} are {where}
    Is {subject} really {adjective}
    Have you ever {moved_to} {the_place}
    What did {name} say about {object}
    Which {thing} belongs to {person}
    Would {name} rather {act} {object} or {act} {object}
    Are there any {plural} {where}
    Shall we {act} {object}
    """.strip().splitlines()
)
_ORDERS = tuple(
    line.strip()
    for line in """
    Please {act} {object}
    {act} {object} {when}
    Do not {act} {object}
    Never {act} {a_thing} {where}
    Let us {act} {object}
    Take {object} to {the_place}
    Put {object} {where}
    Tell {person} to {act} {object}
    Remember to {act} {object} {when}
    Ask {name} about {object}
    """.strip().splitlines()
)
_SAYINGS = tuple(
    line.strip()
    for line in """
    The number is {digits}
    My telephone number is {digits}
    It costs {bignumber} pounds and {bignumber} pence
    The year was nineteen {bignumber}
    The train to {the_place} leaves at {number} {bignumber}
    Chapter {bignumber}, {the_idea}
    {day}, the {ordinal} of {month}
    About {bignumber} percent of the {plural} are {adjective}
    Turn left after {bignumber} metres
    The temperature is {bignumber} degrees
    {number} plus {number} makes {bignumber}
    """.strip().splitlines()
)


def _past(entry: str) -> str:
    base, _, past = entry.partition(":")
    if past:
        return past
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


def _plural(noun: str) -> str:
    if noun in PLURAL:
        return PLURAL[noun]
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _a(words: str) -> str:
    vowel = words[0] in "aeiou" and not re.match("us(ual|e)|uni|eu|one", words)
    return ("an " if vowel or re.match("hour|honest", words) else "a ") + words


def _noun(generator: random.Random) -> str:
    pool = generator.choices((THINGS, PEOPLE, ANIMALS, IDEAS, PLACES), (40, 20, 15, 15, 10))[0]
    noun = generator.choice(pool)
    while generator.random() < 0.35:
        noun = f"{generator.choice(ADJECTIVES if generator.random() < 0.85 else COLOURS)} {noun}"
    return noun


def _described(generator: random.Random) -> str:
    return generator.choice(ADJECTIVES) + " " if generator.random() < 0.3 else ""


def _bignumber(generator: random.Random) -> str:
    if generator.random() < 0.15:
        return f"{generator.choice(NUMBERS[:9])} hundred and {generator.choice(TENS)}"
    if generator.random() < 0.5:
        return generator.choice(TENS)
    return f"{generator.choice(TENS)} {generator.choice(NUMBERS[:9])}"


def _object(generator: random.Random) -> str:
    draw = generator.random()
    if draw < 0.35:
        return f"the {_noun(generator)}"
    if draw < 0.55:
        return _a(_noun(generator))
    if draw < 0.7:
        owner = generator.choice(("my", "your", "his", "her", "our", "their", "that", "this"))
        return f"{owner} {_noun(generator)}"
    if draw < 0.8:
        return f"the {generator.choice(MASSES)}"
    if draw < 0.9:
        return f"{generator.choice(('some', 'these', 'those', 'the', 'many'))} {_fill('{plural}', generator)}"
    return f"the {_noun(generator)} of {generator.choice(NAMES)}"


def _subject(generator: random.Random) -> str:
    draw = generator.random()
    if draw < 0.25:
        return generator.choice(NAMES)
    if draw < 0.45:
        return generator.choice(("he", "she", "nobody", "someone", "that man", "the lady", "everybody", "one of us"))
    if draw < 0.6:
        return f"{generator.choice(('my', 'your', 'his', 'her', 'our', 'their'))} {generator.choice(PEOPLE)}"
    return f"the {_noun(generator)}" if draw < 0.85 else _a(_noun(generator))


_FILLERS = {
    "subject": _subject,
    "object": _object,
    "name": lambda g: g.choice(NAMES),
    "person": lambda g: g.choice(NAMES) if g.random() < 0.4 else f"the {g.choice(PEOPLE)}",
    "peoplenoun": lambda g: g.choice(PEOPLE),
    "thing": lambda g: g.choice(THINGS),
    "a_thing": lambda g: _a(_noun(g)),
    "idea": lambda g: g.choice(IDEAS),
    "the_idea": lambda g: f"the {g.choice(IDEAS)}",
    "mass": lambda g: g.choice(MASSES),
    "the_place": lambda g: f"the {g.choice(PLACES)}",
    "plural": lambda g: _described(g) + _plural(g.choice(g.choice((THINGS, PEOPLE, ANIMALS)))),
    "adjective": lambda g: g.choice(ADJECTIVES),
    "colour": lambda g: g.choice(COLOURS),
    "adverb": lambda g: g.choice(ADVERBS),
    "act": lambda g: g.choice(ACTIONS).partition(":")[0],
    "acted": lambda g: _past(g.choice(ACTIONS)),
    "moved": lambda g: _past(g.choice(MOTIONS)),
    "moved_to": lambda g: g.choice(("walked to", "been to", "heard of", "travelled to", "thought about")),
    "where": lambda g: f"{g.choice(PREPOSITIONS)} the {g.choice(PLACES if g.random() < 0.6 else THINGS)}",
    "when": lambda g: g.choice(TIMES),
    "number": lambda g: g.choice(NUMBERS[1:]) if g.random() < 0.7 else _bignumber(g),
    "bignumber": _bignumber,
    "ordinal": lambda g: g.choice(ORDINALS),
    "digits": lambda g: ", ".join(" ".join(g.choice(NUMBERS[:9]) for _ in range(3)) for _ in range(g.randint(1, 3))),
    "day": lambda g: g.choice(DAYS),
    "month": lambda g: g.choice(MONTHS),
}


def _fill(template: str, generator: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: _FILLERS[match[1]](generator), template)


def _salad(generator: random.Random) -> str:
    pools, weights = (RARE, THINGS, ADJECTIVES, ADVERBS, PLACES, NAMES, MASSES), (50, 12, 12, 8, 6, 6, 6)
    words = []
    for _ in range(generator.randint(4, 14)):
        pool = generator.choices(pools, weights)[0]
        words.append(generator.choice(pool) + ("," if generator.random() < 0.12 else ""))
    return " ".join(words).rstrip(",")


def draw_sentence(generator: random.Random) -> str:
    """Draw a sentence of 2 to 22 words; the same state of the generator gives the same sentence."""
    while True:
        draw = generator.random()
        if draw < 0.6:
            sentence = _fill(generator.choice(_CLAUSES), generator)
            if generator.random() < 0.55:
                clause = _fill(generator.choice(_CLAUSES), generator)
                comma = "," if generator.random() < 0.4 else ""
                sentence = f"{sentence}{comma} {generator.choice(CONJUNCTIONS)} {clause}"
            end = "." if generator.random() < 0.95 else "!"
        elif draw < 0.73:
            sentence, end = _fill(generator.choice(_QUESTIONS), generator), "?"
        elif draw < 0.81:
            sentence, end = _fill(generator.choice(_ORDERS), generator), "."
        elif draw < 0.87:
            sentence, end = _fill(generator.choice(_SAYINGS), generator), "."
        else:
            sentence, end = _salad(generator), "."
        if generator.random() < 0.06:
            sentence = f"{generator.choice(EXCLAMATIONS)}, {sentence}"
        if 2 <= len(sentence.split()) <= 22:
            return sentence[0].upper() + sentence[1:] + end
