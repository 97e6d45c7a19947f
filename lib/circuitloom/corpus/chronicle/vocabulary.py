"""Lists the words of chronicle, grouped in classes. No word is in two classes. Numbers serve as centuries and as
years."""

_LISTS = {
    "woman": """
        Ada Agnes Alice Anna Beatrice Bella Bertha Cecily Cora Daisy Diana Dora Edith Eliza Ellen
        Emily Emma Esther Fanny Flora Frances Grace Hannah Ida Irene Isabel Jane Judith Julia Kate
        Laura Lily Mabel Margaret Martha Mary Maud Nancy Nora Olive Phoebe Rachel Rosa Ruth Sarah
        Sophia Susan Ursula Violet Winifred""",
    "man": """
        Adam Albert Alfred Andrew Arthur Basil Benjamin Bernard Charles Clement Cuthbert Daniel David
        Edmund Edward Eric Ernest Felix Frederick George Gilbert Godfrey Harold Herbert Hubert Hugh
        Isaac James John Joseph Julian Leonard Mark Martin Matthew Michael Nicholas Oswald Patrick
        Paul Peter Philip Richard Robert Roger Samuel Simon Thomas Tom Walter""",
    "surname": """
        Abbot Archer Ashby Bailey Barlow Baxter Becker Bishop Blake Brooks Burton Calder Carver
        Chandler Clarke Cooper Cotton Crane Dalton Dawson Dyer Eaton Ellis Farrow Fenton Fisher
        Foster Fuller Gardner Garrick Gibson Graves Hall Harding Harlow Hayes Holt Hudson Irving
        Jarvis Kemp Lambert Lawson Lowe Marsh Mercer Moore Morton Norris Osborn Palmer Parsons
        Pemberton Porter Radley Reeve Rowland Sawyer Sexton Shaw Skinner Slater Spencer Stone Sutton
        Tanner Thorpe Tucker Turner Underhill Vance Warren Webster Weston Wheeler Whitby Wilder
        Wright Yates York""",
    "city": """
        Acre Aleppo Antwerp Athens Babylon Basel Bergen Bologna Bordeaux Boston Bremen Bruges Cadiz
        Cairo Calais Canton Carthage Cologne Cracow Damascus Danzig Delhi Dover Dublin Ephesus
        Ferrara Florence Geneva Genoa Ghent Granada Hamburg Kiev Leiden Leipzig Lima Lisbon Lubeck
        Lyon Madrid Memphis Milan Modena Nantes Naples Nineveh Norwich Oxford Padua Palermo Paris
        Parma Petra Pisa Ravenna Rhodes Riga Rome Rouen Seville Siena Sparta Tangier Toledo Trieste
        Tripoli Troy Tunis Venice Verona Vienna Warsaw""",
    "occupation": """
        actor admiral apothecary architect barber baron beggar bookbinder brewer builder butcher
        captain clerk cobbler colonel cook dancer diplomat doctor farmer ferryman general glover
        governor guard herald jeweller jester judge king lawyer locksmith mason mayor messenger
        miller miner minister monk painter pilgrim poet potter preacher prince printer queen sailor
        scholar sculptor senator servant shepherd smith soldier spy tailor tinker trader weaver""",
    "animal": """
        badger bear beaver bird boar bull cat cow crow dog donkey dove dragon duck eagle elephant
        falcon goat hawk hedgehog hen heron horse kitten lamb leopard lion monkey owl parrot pig
        pigeon rabbit raven rooster snake spider squirrel stork swan tiger toad turtle whale""",
    "thing": """
        anchor barrel basket bell bottle box bucket cabinet candle carpet chain chair chest clock
        coin cradle desk drawer flag gate jar kettle ladder lamp lantern letter lock map needle oven
        painting pillow plate pot rope scroll statue stool table tent vase wagon wheel window""",
    "weapon": """
        arrow axe bayonet bow cannon club crossbow cudgel cutlass dagger halberd harpoon javelin lance longbow mace
        musket pike pistol rapier rifle sabre scimitar sling spear sword trident""",
    "tool": """
        anvil awl bellows brush chisel compass crowbar drill file hammer hoe knife mallet needlecase pickaxe plane
        plough pulley rake saw scythe shovel sickle spade tongs trowel wrench""",
    "building": """
        abbey arsenal bakery barn barracks brewery castle cathedral chapel church citadel college
        convent cottage courthouse factory fortress foundry granary hospital inn library lighthouse
        manor mill monastery observatory palace parliament prison school shop stable synagogue
        tannery tavern theatre tower treasury warehouse windmill workshop""",
    "place": """
        bank beach camp cemetery court crossroads dock fair farm garden gallery hall harbour kitchen market meadow
        orchard park pier port quarry quay ruins square stadium station street vineyard wharf yard""",
    "landmark": """
        bay canal cave cliff coast desert field forest glacier hill island lake marsh moor mountain pond river shore
        stream swamp valley volcano waterfall wood""",
    "event": """
        alliance armistice banquet blockade boycott carnival census conflict conquest coronation
        crusade debate drought epidemic exile expedition famine feud flood frost invasion mutiny
        negotiation oppression pageant persecution pilgrimage plague quarrel regency revolt riot
        rivalry search siege strike struggle trial truce uprising voyage war""",
    "food": """
        ale bacon barley beans beef bread butter cabbage cake cheese cherries cider cream figs fish
        flour garlic ginger grapes ham honey malt meat milk mustard mutton nuts oats olives pears
        pepper pork rice rye salt soup spice turnips venison vinegar wheat wine""",
    "vessel": "barge boat brig canoe cutter ferry frigate galleon galley raft schooner ship sloop yacht",
    "gift": """
        amulet bracelet brooch comb crown diary drum earring flask gem goblet locket medal necklace parcel pearl pendant
        portrait purse ring ruby sceptre shawl spoon toy trophy watch wreath""",
    "catchable": "ball bouquet cap cushion feather glove hoop kite orange plum puck quoit stick stone",
    "ailment": "chill cold cough fever flu measles",
    "colour": """
        amber azure black blue bronze brown crimson golden green grey indigo ivory lilac pink purple red scarlet
        silver violet white yellow""",
    "material": """
        brass brick clay copper cork cotton flax glass iron lead leather linen marble oak paper pewter pine sandstone
        silk slate steel straw tin velvet wax wicker wool""",
    "clothing": """
        apron belt blouse boot bracer cape cloak collar doublet dress gown hat hood jacket kilt mask
        robe scarf shirt skirt sock turban veil vest""",
    "instrument": """
        bagpipe banjo bassoon cello cittern clarinet cornet fiddle flute guitar harp horn lute lyre mandolin oboe organ
        piano trombone trumpet viola violin zither""",
    "plant": """
        ash beech birch cedar cypress daffodil elm fern fir hazel heather holly hyacinth iris jasmine
        laurel lavender maple mint nettle palm poplar poppy reed rosebush tulip willow yew""",
    "body": "ankle arm back cheek chin ear elbow eye finger foot hand heel hip knee leg nose shoulder thumb toe wrist",
    "kin": """
        aunt brother cousin daughter father godfather grandfather grandmother husband mother nephew niece sister son
        stepson uncle widow wife""",
    "mood": """
        afraid angry anxious ashamed bored calm cheerful curious envious furious glad grateful happy hopeful jealous
        lonely merry miserable nervous pleased proud restless sad serious sorry tired weary worried""",
    "state": """
        ancient bent bright broken costly cracked crooked dirty dull dusty empty expensive flat
        fragile heavy huge light lost narrow nice ornate plain polished precious ragged rotten rusty
        shabby sharp shiny smooth soft spotless stolen strange sturdy tall thin tiny torn ugly warm
        wet wide worn""",
    "quality": """
        bold brave clever cruel famous foolish gentle greedy honest idle kind lazy loyal mad modest
        old patient pious polite poor rich shy simple sly stern stubborn timid wise witty young""",
    "weather": "cloudy cool dark dry foggy freezing frosty gloomy hot humid misty rainy snowy stormy sunny windy",
    "daytime": "afternoon dawn day dusk evening morning night noon",
    "month": "January February March April May June July August September October November December",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "adverb": """
        abruptly badly boldly carefully cheaply eagerly finally gladly hastily often openly promptly proudly quickly
        quietly rarely secretly seldom silently slowly suddenly swiftly twice wisely""",
    "moved": """
        climbed crawled crept danced drifted fled flew galloped hurried jumped limped marched paraded raced ran rode
        rushed strolled swam travelled trotted walked wandered""",
    "mended": """
        admired borrowed bought burned buried cleaned destroyed discovered examined guarded hid inspected painted
        pawned repaired restored stole tested washed weighed""",
    "said": "announced answered boasted cried grumbled insisted joked muttered replied said shouted sighed whispered",
    "asked": "asked demanded enquired wondered",
    "gave": "brought gave handed lent offered passed sent showed sold threw",
    "preposition": "above behind below beneath beside near opposite under",
    "count": "three four five six seven eight nine ten eleven twelve",
    "pronoun": "he she",
}


def _syllables(heads: str, tails: str) -> tuple[str, ...]:
    return tuple(head + tail for head in heads.split() for tail in tails.split())


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith("man"):
        return noun[:-2] + "en"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


NUMBERS = tuple(f"{number:02d}" for number in range(100))
"""The two-digit tokens 00 to 99. A year consists of two such tokens, such as 17 and 89."""

CLASSES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _LISTS.items()}
CLASSES |= {
    "occupations": tuple(map(_plural, CLASSES["occupation"])),
    "animals": tuple(map(_plural, CLASSES["animal"])),
    "things": tuple(map(_plural, CLASSES["thing"])),
    "rare_first": _syllables("Dul Hesk Morv Quin Thal Zor", "ab eth ik olm une varr vek yx"),
    "rare_second": _syllables("Al Er Ish Ny Su Vi", "bo dra fen gur kal mi pos tash"),
}
"""Maps each class to its words, in the order of token ids."""

UNIONS: dict[str, tuple[str, ...]] = {
    "person": CLASSES["woman"] + CLASSES["man"],
    "century": NUMBERS[11:20],
    "recent": NUMBERS[18:20],
    "start": NUMBERS[2:99],
    "number": NUMBERS,
}
"""Further sets of words from which templates can draw."""
