-- Look at waiting messages, oldest first.
-- KEYS: list. ARGV: messages to pass over, most messages to look at, bytes after which no more
-- are looked at; one always is.
-- Returns 1 when there are no more (else 0), then for each task id, header "owl" as JSON; both
-- empty where there is none. Bodies stay here, since they may be large.
local function owl_header(headers)
  if type(headers.owl) == 'table' then
    return headers.owl
  end
  return type(headers.headers) == 'table' and headers.headers.owl
end

local skipped, most, budget = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, looked = {0}, 0
-- One by one: LRANGE would copy all of them, however large they are.
while looked < most and (looked == 0 or budget > 0) do
  local message = redis.call('LINDEX', KEYS[1], -skipped - looked - 1)
  if not message then
    found[1] = 1
    break
  end
  looked, budget = looked + 1, budget - #message
  local id, header = '', ''
  local is_sound, decoded = pcall(cjson.decode, message)
  local headers = is_sound and type(decoded) == 'table' and decoded.headers
  if type(headers) == 'table' and type(headers.id) == 'string' then
    local owl = owl_header(headers)
    local is_text, text = pcall(cjson.encode, owl)
    if type(owl) == 'table' and is_text then
      id, header = headers.id, text
    end
  end
  found[#found + 1] = id
  found[#found + 1] = header
end
return found
