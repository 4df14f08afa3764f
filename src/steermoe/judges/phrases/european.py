"""Spanish, French, German, Portuguese and Russian: declining."""

from __future__ import annotations

_HELP_ES = (
    r"(?:ayud|asist|proporcion|ofrec|dar|darte|darle|brind|respond|cumpl|apoy|hacer|crear|escrib|gener|compart|"
    r"facilit|particip|continu|discut|hablar|recomend|explic|complac|acced|contest|colabor|tratar)\w*"
)
SPANISH = (
    r"\b(?:lo siento|lo lamento|disculpa|disculpe|perd[oó]n)\b[^.!?]{0,15}\b(?:pero|no)\b",
    rf"\bno (?:(?:te|le|les|os|lo|la|me) )?(?:puedo|podr[ií]a|podr[eé]|podemos|voy a|debo)"
    rf" (?:\w+ ){{0,2}}{_HELP_ES}",
    r"\bno (?:estoy (?:en condiciones|autorizad[oa]|capacitad[oa]|programad[oa]|dise[ñn]ad[oa])|soy capaz de|"
    r"me es posible|me siento c[oó]mod[oa])\b",
    r"\b(?:me niego a|debo (?:rechazar|negarme|declinar)|tengo que (?:rechazar|negarme|declinar))\b",
    r"\b(?:va|est[aá]|ir[ií]a) en contra de (?:mis|nuestras|las) "
    r"(?:pol[ií]ticas|directrices|principios|normas|pautas)\b",
)

_HELP_FR = (
    r"(?:aider|assister|fournir|r[eé]pondre|donner|proposer|cr[eé]er|[eé]crire|g[eé]n[eé]rer|partager|participer|"
    r"continuer|discuter|recommander|expliquer|satisfaire|accéder|acc[eé]der|soutenir|faire|encourager|promouvoir)\b"
)
FRENCH = (
    r"\b(?:je suis|nous sommes) (?:vraiment |sincèrement |profondément )?(?:d[eé]sol[eé]e?s?|navr[eé]e?s?)\b"
    r"(?! (?:d'apprendre|d'entendre|de lire|pour (?:vous|votre|toi|ta|ton|tes|cette|ce)|que (?:vous|tu)))",
    r"^\W*(?:d[eé]sol[eé]e?|pardon)\b[^.!?]{0,15}\b(?:mais|je)\b",
    rf"\bje ne (?:peux|puis|pourrai|pourrais|vais|veux|souhaite|dois)(?: \w+)? pas "
    rf"(?:[\w']+ ){{0,3}}?(?:[mtlsd]')?{_HELP_FR}",
    rf"\bje ne saurais (?:[\w']+ ){{0,2}}(?:[mtlsd]')?{_HELP_FR}",
    r"\bje ne suis pas (?:en mesure|autoris[eé]e?|capable|programm[eé]e?|habilit[eé]e?|con[cç]ue?)\b",
    r"\b(?:il m'est impossible|je refuse|je dois (?:\w+ )?(?:refuser|d[eé]cliner))\b",
    r"\b(?:contraires?|contre|à l'encontre de) (?:à )?(?:mes|nos) (?:principes|directives|r[eè]gles|valeurs)\b",
)

_HELP_DE = (
    r"(?:helfen|weiterhelfen|behilflich|unterstützen|anbieten|bereitstellen|geben|liefern|beantworten|erfüllen|"
    r"nachkommen|erstellen|schreiben|teilen|erklären|tun|machen|leisten|verfassen|eingehen|entsprechen|besprechen|"
    r"mitwirken|beitragen|weitergeben)\b"
)
_NO_DE = r"(?:\w+ ){0,6}?(?:nicht|keine?[nrms]?)\b"
GERMAN = (
    r"\btut mir (?:\w+ )?leid\b(?!,? (?:das zu hören|dass (?:du|sie|ihr|es|dir|ihnen|deine?|ihre?)))",
    r"^\W*(?:entschuldigung|entschuldige|entschuldigen sie|verzeihung)\b[^.!?]{0,15}\b(?:aber|ich)\b",
    rf"\bich (?:kann|könnte|darf|werde|möchte|will) {_NO_DE}[^.!?]{{0,60}}\b{_HELP_DE}",
    rf"\b(?:kann|darf|werde|möchte) ich {_NO_DE}[^.!?]{{0,60}}\b{_HELP_DE}",
    r"\bich bin (?:\w+ )?nicht (?:in der lage|befugt|berechtigt|dafür|programmiert|bereit|dazu)\b",
    r"\b(?:ich muss|muss ich) [^.!?]{0,40}\b(?:ablehnen|verweigern)\b",
    r"\b(?:ich lehne|ich weigere mich|lehne ich)\b",
    r"\bverstößt gegen (?:meine|unsere|die) (?:richtlinien|grundsätze|prinzipien|werte)\b",
)

_HELP_PT = (
    r"(?:ajud|auxili|fornec|oferec|dar|respond|cumpr|apoi|faz|cri|escrev|ger|compartilh|particip|continu|discut|"
    r"recomend|explic|atend|assist|colabor|prestar|incentiv)\w*"
)
PORTUGUESE = (
    r"\b(?:sinto muito|lamento|desculpe|desculpa|peço desculpas?)\b[^.!?]{0,15}\b(?:mas|não|nao)\b",
    rf"\b(?:não|nao) (?:(?:te|lhe|lhes|vos|o|a) )?(?:posso|consigo|poderei|poderia|podemos|vou|devo)"
    rf" (?:\w+ ){{0,2}}{_HELP_PT}",
    r"\b(?:não|nao) (?:estou (?:em condições|autorizad[oa]|apt[oa]|habilitad[oa]|programad[oa]|disposto)|"
    r"sou capaz de|me é possível|me sinto confortável)\b",
    r"\b(?:me recuso a|recuso-me|(?:preciso|devo|tenho que|tenho de) (?:recusar|declinar))\b",
    r"\bcontra (?:as )?(?:minhas|nossas) (?:diretrizes|políticas|normas)\b|\bcontra (?:os )?meus princípios\b",
)

_HELP_RU = (
    r"(?:помоч|помога|предостав|ответ|отвеч|выполн|дать|давать|обсужд|рассказ|поддерж|содейств|созда|напис|сдела|"
    r"участв|продолж|объясн|советова|рекомендова|делиться|поделиться)\w*"
)
RUSSIAN = (
    r"\b(?:извините|простите|прошу прощения|мне (?:очень )?жаль)\b[^.!?]{0,10}\b(?:но|я не|не)\b",
    rf"\bне (?:могу|смогу|буду|можем|имею права)(?: \w+){{0,4}}? {_HELP_RU}",
    r"\bя не (?:в состоянии|уполномочен|запрограммирован|предназначен)\w*",
    r"\b(?:вынужден\w* (?:отказать|отклонить)|я отказываюсь|должен отказать|должна отказать)\w*",
    r"\bпротивореч\w+ (?:моим|нашим) (?:принципам|правилам|ценностям)\b",
)
