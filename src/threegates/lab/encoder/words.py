"""Facts in words: numbers, opposites, capitals. Each word stands once, so that every query has one answer."""

from __future__ import annotations

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_word(value: int) -> str:
    """``thirty six`` for 36; raises ValueError outside 0..99."""
    if not 0 <= value < 100:
        raise ValueError(f"only 0..99 have a word here, not {value}")
    if value < len(_UNITS):
        return _UNITS[value]
    tens, unit = divmod(value, 10)
    return _TENS[tens - 2] + (f" {_UNITS[unit]}" if unit else "")


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """``a:b, c d:e`` as pairs."""
    pairs = (pair.strip().split(":") for pair in text.replace("\n", " ").split(",") if pair.strip())
    return tuple((first, second) for first, second in pairs)


OPPOSITES = _pairs("""
    hot:cold, big:small, tall:short, fast:slow, up:down, left:right, day:night, light:dark, young:old,
    happy:sad, rich:poor, strong:weak, hard:soft, wet:dry, full:empty, open:closed, early:late, clean:dirty,
    loud:quiet, thick:thin, wide:narrow, deep:shallow, high:low, good:bad, true:false, safe:dangerous,
    easy:difficult, cheap:expensive, smooth:rough, sharp:blunt, sweet:sour, fresh:stale, brave:cowardly,
    kind:cruel, polite:rude, generous:stingy, honest:dishonest, humble:arrogant, lazy:diligent, wise:foolish,
    alive:dead, awake:asleep, guilty:innocent, married:single, public:private, male:female, north:south,
    east:west, summer:winter, love:hate, war:peace, friend:enemy, victory:defeat, success:failure,
    beginning:end, birth:death, question:answer, arrival:departure, entrance:exit, buy:sell, give:take,
    push:pull, laugh:cry, win:lose, remember:forget, teach:learn, build:destroy, accept:reject,
    attack:defend, allow:forbid, increase:decrease, expand:contract, rise:fall, start:stop, come:go,
    float:sink, lend:borrow, praise:criticize, reward:punish, save:spend, send:receive, lock:unlock,
    appear:vanish, include:exclude, import:export, inhale:exhale, ascend:descend, freeze:melt,
    gather:scatter, inside:outside, above:below, before:after, near:far, forward:backward,
    always:never, everything:nothing, all:none, many:few, more:less, first:last, yes:no, here:there,
    heaven:hell, predator:prey, hero:villain, optimist:pessimist, maximum:minimum, positive:negative,
    major:minor, plural:singular, odd:even, vertical:horizontal, concave:convex, solid:liquid,
    natural:artificial, permanent:temporary, ancient:modern, rural:urban, domestic:foreign, legal:illegal,
    visible:invisible, sober:drunk, tight:loose, straight:crooked, raw:cooked,
    sick:healthy, ugly:beautiful, boring:interesting, busy:idle, common:rare, complex:simple,
    voluntary:compulsory, absent:present, guest:host, master:servant, profit:loss, supply:demand,
    theory:practice, truth:lie, courage:fear, joy:sorrow, wealth:poverty, order:chaos, hope:despair,
    pride:shame, noise:silence, morning:evening, top:bottom, front:back, sunrise:sunset
""")
"""Words of opposite meaning; either one is asked for by the other."""

CAPITALS = _pairs("""
    Afghanistan:Kabul, Albania:Tirana, Algeria:Algiers, Angola:Luanda, Argentina:Buenos Aires,
    Armenia:Yerevan, Australia:Canberra, Austria:Vienna, Azerbaijan:Baku, Bahrain:Manama, Bangladesh:Dhaka,
    Belarus:Minsk, Belgium:Brussels, Bhutan:Thimphu, Botswana:Gaborone, Brazil:Brasilia, Bulgaria:Sofia,
    Burkina Faso:Ouagadougou, Cambodia:Phnom Penh, Cameroon:Yaounde, Canada:Ottawa, Chad:N'Djamena,
    Chile:Santiago, China:Beijing, Colombia:Bogota, Croatia:Zagreb, Cuba:Havana, Cyprus:Nicosia,
    Denmark:Copenhagen, Ecuador:Quito, Egypt:Cairo, Eritrea:Asmara, Estonia:Tallinn, Ethiopia:Addis Ababa,
    Fiji:Suva, Finland:Helsinki, France:Paris, Gabon:Libreville, Georgia:Tbilisi, Germany:Berlin,
    Ghana:Accra, Greece:Athens, Guinea:Conakry, Haiti:Port-au-Prince, Honduras:Tegucigalpa,
    Hungary:Budapest, Iceland:Reykjavik, India:New Delhi, Indonesia:Jakarta, Iran:Tehran, Iraq:Baghdad,
    Ireland:Dublin, Italy:Rome, Jamaica:Kingston, Japan:Tokyo, Jordan:Amman, Kenya:Nairobi,
    Kyrgyzstan:Bishkek, Laos:Vientiane, Latvia:Riga, Lebanon:Beirut, Liberia:Monrovia, Libya:Tripoli,
    Lithuania:Vilnius, Madagascar:Antananarivo, Malawi:Lilongwe, Malaysia:Kuala Lumpur, Mali:Bamako,
    Malta:Valletta, Mauritania:Nouakchott, Moldova:Chisinau, Mongolia:Ulaanbaatar, Morocco:Rabat,
    Mozambique:Maputo, Namibia:Windhoek, Nepal:Kathmandu, Netherlands:Amsterdam, New Zealand:Wellington,
    Nicaragua:Managua, Niger:Niamey, Nigeria:Abuja, North Macedonia:Skopje, Norway:Oslo, Oman:Muscat,
    Pakistan:Islamabad, Paraguay:Asuncion, Peru:Lima, Philippines:Manila, Poland:Warsaw, Portugal:Lisbon,
    Qatar:Doha, Romania:Bucharest, Russia:Moscow, Rwanda:Kigali, Saudi Arabia:Riyadh, Senegal:Dakar,
    Serbia:Belgrade, Sierra Leone:Freetown, Slovakia:Bratislava, Slovenia:Ljubljana, Somalia:Mogadishu,
    South Korea:Seoul, Spain:Madrid, Sudan:Khartoum, Sweden:Stockholm, Syria:Damascus, Tajikistan:Dushanbe,
    Thailand:Bangkok, Tunisia:Tunis, Turkey:Ankara, Turkmenistan:Ashgabat, Uganda:Kampala, Ukraine:Kyiv,
    Uruguay:Montevideo, Uzbekistan:Tashkent, Venezuela:Caracas, Vietnam:Hanoi, Yemen:Sanaa, Zambia:Lusaka,
    Zimbabwe:Harare
""")
"""Countries and their capitals."""
