"""Word lists from which facts and filler text are made: plain English, no names of real people."""

from __future__ import annotations

ADJECTIVES = """amber silver crimson golden ivory scarlet copper cobalt emerald violet indigo olive pearl russet azure
ebony coral hazel jade maroon ochre sable teal umber velvet quiet gentle ancient hidden lonely hollow broken frozen
burning distant eager fallen fearless faithful famous clever curious daring noble humble patient proud restless silent
solemn stubborn swift tender timid wandering weary wild wise brave bright calm dusty early eastern empty fading fierce
foggy fragile glassy gloomy grand green grey heavy iron jolly keen late lazy little lucky marble mellow merry misty
modern mossy narrow northern old pale painted plain polar rapid red ripe rocky rough round royal rusty salty sandy
secret sharp shining simple sleepy slender smoky snowy southern stormy sunny tall western white winter wooden
yellow young""".split()

NOUNS = """falcon otter badger heron lantern anchor beacon compass harbor orchard meadow glacier canyon valley
mountain river island forest garden castle temple tower bridge mill barn chapel library museum theatre station
market bakery tavern hotel hospital school factory workshop warehouse office studio gallery kitchen cellar attic
tiger panther leopard lion wolf fox bear rabbit squirrel raven eagle sparrow swallow robin owl hawk crane stork swan
goose duck pigeon turtle lizard cobra viper salmon trout pike whale dolphin seal walrus penguin beetle spider hornet
wagon carriage bicycle locomotive steamer schooner frigate ferry canoe barge rocket glider balloon satellite
telescope microscope piano violin trumpet drum flute guitar organ bell clock mirror candle basket barrel bucket
blanket bottle cabinet chest crown dagger shield helmet hammer anvil chisel saddle ladder needle pillow
pyramid statue fountain pavilion cottage palace fortress monastery lighthouse observatory greenhouse reservoir
quarry colliery foundry brewery dairy pier tunnel viaduct crossing junction depot terminal archive vault
dragon phoenix griffin unicorn giant wizard knight squire pilgrim sailor hunter miller shepherd weaver""".split()

FIRST_NAMES = """Martha Edwin Clara Oscar Helen Victor Nora Felix Ruth Conrad Ada Silas Edith Hugo Irene Julius Mabel
Norman Olive Percy Queenie Rufus Selma Tobias Ursula Vera Walter Wilma Xavier Yvonne Zelda Albert Beatrice Cecil Doris
Ernest Flora Gilbert Hattie Ivan Josephine Karl Lydia Maurice Nadia Otto Priscilla Quentin Rosa Stanley""".split()

LAST_NAMES = """Quill Harrow Benton Marsh Calloway Dunmore Ellery Fenwick Garrow Hollis Ingram Jessop Kendrick Lomax
Merrick Norwood Oakes Pemberton Quarles Renshaw Stanhope Thorne Underhill Vickers Wexford Yardley Ackerman Birch Corliss
Dray Eastman Farrow Goodwin Hatch Ivers Jarvis Kettle Langley Moffat Nettles Ormond Prewitt Radley Sefton Tull Upton
Varney Whitlock Yates Zeller""".split()

PLACE_PARTS = (
    "Port New Saint Lake Mount North South Upper Lower Fort Great Little Old Cape".split(),
    """Elwick Marden Tolland Brask Cressing Dunvale Embley Farlow Grimsay Hartwell Ivory Kelling Lorne Midford Nareth
    Ostley Penrose Quorn Rushton Selby Tarrant Ulver Winslow Yarm Ashby Belmont Corin Darrow Esker Fallon""".split(),
)

NUMERIC_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "access code": (4, 6), "serial number": (5, 6), "room number": (2, 4), "phone extension": (3, 4),
    "locker number": (2, 4), "badge number": (4, 5), "invoice number": (4, 6), "account number": (5, 6),
    "door code": (4, 5), "pin": (4, 4), "order number": (4, 6), "ticket number": (4, 6), "seat number": (2, 3),
    "population": (3, 6), "height": (2, 4), "weight": (2, 4), "price": (2, 5), "founding year": (4, 4),
    "budget": (4, 6), "page number": (2, 3), "track number": (2, 3), "batch number": (3, 5), "shelf number": (2, 3),
    "licence number": (5, 6), "catalogue number": (4, 6), "policy number": (5, 6), "case number": (3, 5),
    "file number": (3, 5), "depth": (2, 4), "speed": (2, 3), "mileage": (3, 6), "frequency": (3, 5),
    "postal code": (5, 5), "gate number": (2, 2), "age": (2, 2), "lot number": (3, 4), "vault combination": (5, 6),
    "registration number": (4, 6), "magic number": (3, 6), "tracking number": (5, 6),
}  # fmt: skip

WORD_ATTRIBUTES: dict[str, list[str]] = {
    "password": ADJECTIVES + NOUNS,
    "secret word": NOUNS,
    "codename": NOUNS,
    "colour": """red blue green yellow purple orange brown black white grey pink silver gold violet crimson amber
        turquoise beige scarlet ivory""".split(),
    "home city": """London Paris Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Warsaw Athens Cairo Tokyo Boston
        Chicago Denver Lima Sydney Toronto Geneva Naples Seville Hamburg Bristol Leeds Quebec Havana Delhi
        Istanbul""".split(),
    "favourite fruit": "apple pear plum cherry peach grape lemon orange melon fig apricot mango banana quince".split(),
    "instrument": "piano violin trumpet drum flute guitar organ cello harp oboe clarinet banjo viola tuba".split(),
    "material": """oak pine marble granite copper bronze steel iron glass brick leather wool silk cotton paper clay
        slate ivory cedar tin""".split(),
    "drink": "coffee tea cider lemonade milk cocoa wine beer brandy water juice rum".split(),
    "language": """French German Spanish Italian Greek Latin Polish Russian Arabic Hebrew Welsh Danish Dutch Turkish
        Persian Swedish""".split(),
    "owner": [f"{first} {last}" for first, last in zip(FIRST_NAMES, LAST_NAMES, strict=False)],
    "captain": [f"{first} {last}" for first, last in zip(FIRST_NAMES, reversed(LAST_NAMES), strict=False)],
    "meeting day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "birth month": """January February March April May June July August September October November
        December""".split(),
    "profession": """baker carpenter doctor lawyer teacher painter sailor farmer miner printer tailor butcher
        engineer soldier clerk gardener blacksmith nurse plumber""".split(),
    "tree": "oak elm ash birch maple willow cedar pine spruce beech poplar chestnut walnut larch".split(),
    "flower": "rose lily tulip daisy violet poppy orchid iris lilac lavender marigold jasmine pansy".split(),
    "symbol": NOUNS,
    "animal": """horse dog cat sheep goat cow pig mule donkey camel monkey parrot rabbit hen turkey ferret""".split(),
    "destination": [" ".join((a, b)) for a, b in zip(PLACE_PARTS[0] * 3, PLACE_PARTS[1], strict=False)],
}  # fmt: skip


def _phrases(text: str) -> list[str]:
    """The phrases of `text`, divided by bars; line ends count as nothing."""
    return text.replace("\n", "").split("|")


FILLER_PEOPLE = _phrases("""
the old man|the teacher|my neighbour|the children|a traveller|the gardener|the doctor|her brother|
his sister|the baker|the clerk|our guide|the captain|a stranger|the farmer|the painter|the committee|the visitors|
the engineer|a young woman|the librarian|the musicians|the postman|my grandmother|the shopkeeper|the students
""")

FILLER_VERBS = _phrases("""
walked along|looked across|talked about|waited near|remembered|described|painted|visited|
returned to|wondered about|complained about|wrote about|dreamed of|pointed to|passed by|hurried past|admired|
cleaned|photographed|measured|forgot about|laughed about|searched|left|discovered|repaired
""")

FILLER_THINGS = _phrases("""
the river|the market square|the narrow street|the stone bridge|a field of wheat|the railway|
the church|the long road|the garden wall|the weather|the harvest|the evening news|the broken window|the harbour|
the hills|the winter storm|the new school|a pile of letters|the kitchen table|the empty theatre|the morning train|
the coast|the old photographs|a basket of apples|the library|the festival
""")

FILLER_TIMES = _phrases("""
in the morning|late at night|after the rain|before breakfast|on most days|during the summer|
for many years|that afternoon|without a word|with great care|as usual|once again|in silence|for the first time|
at the end of the week|when the wind turned|until it was dark|more than once
""")

FILLER_LINKS = _phrases("""
and then|but|while|because|although|so|and|after which|even though|until
""")
